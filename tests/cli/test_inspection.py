from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from blake3 import blake3

from fuse_ckpt.model import Metadata, RunStatus, Shape


def test_a_checkpoint_is_inspected_as_yaml_and_as_json_alike(program: Any, shelf: Any) -> None:
    parent = shelf.put()
    said = Metadata(5, 0.5, None, "Llama", "5.1", inference_ready=True, resumable=True, notes=("a: note",),
                    format="torch zip", tensors=7, epoch=1.5)  # fmt: skip
    found = shelf.put(
        "checkpoint-5",
        {"config.json": b"{}", "model/a.bin": b"x" * 2048},
        shape=Shape.DIRECTORY,
        metadata=said,
        parent=parent.id,
        links={"latest": "model"},
    )
    document = json.loads(program("checkpoint", "inspect", found.id, "--json").out)
    assert yaml.safe_load(program("checkpoint", "inspect", found.id).out) == document
    status = document["status"]
    assert document["kind"] == "checkpoint"
    assert document["metadata"] == {"name": "checkpoint-5", "id": found.id}
    assert document["spec"] == {"fromLocalFiles": [], "storageProvider": None, "sourcePath": None}
    assert (status["status"], status["size"], status["sizeBytes"]) == ("available", "2 KB", 2050)
    assert status["createdAt"] == "2025-06-05 09:07:43.816 +0000 UTC"
    assert (status["parentID"], status["resumable"], status["notes"]) == (parent.id, True, ["a: note"])
    assert (status["epoch"], status["format"], status["tensors"]) == (1.5, "torch zip", 7)
    assert "failure" not in status
    assert status["files"] == [
        {"path": "config.json", "size": "2 bytes", "sizeBytes": 2, "digest": blake3(b"{}").hexdigest()},
        {"path": "model/a.bin", "size": "2 KB", "sizeBytes": 2048, "digest": blake3(b"x" * 2048).hexdigest()},
    ]
    assert status["links"] == [{"path": "latest", "target": "model"}]
    assert status["metadata"] == {
        "name": "checkpoint-5",
        "node": "0",
        "step": 5,
        "trainLoss": 0.5,
        "evalLoss": None,
        "model": "Llama",
        "version": "5.1",
        "inferenceReady": True,
    }


def test_a_failed_checkpoint_says_why(program: Any, shelf: Any) -> None:
    found = shelf.put(failure="its writer was killed")
    status = yaml.safe_load(program("checkpoint", "inspect", found.id).out)["status"]
    assert (status["status"], status["failure"]) == ("failed", "its writer was killed")


def test_a_reference_in_every_form_finds_its_checkpoint(program: Any, shelf: Any) -> None:
    first, second = shelf.put(), shelf.put(files={"ckpt.pt": b"2"})

    def found(reference: str) -> str:
        identity = json.loads(program("checkpoint", "inspect", reference, "--json").out)["metadata"]["id"]
        assert isinstance(identity, str)
        return identity

    assert found("digits:latest") == second.id
    assert found("digits/ckpt.pt") == second.id
    assert found("digits/ckpt.pt@1") == first.id
    assert found(first.id[-8:]) == first.id


def test_an_ambiguous_reference_is_a_usage_error_of_one_line(program: Any, shelf: Any) -> None:
    first = shelf.put()
    shelf.put(files={"ckpt.pt": b"2"})
    result = program("checkpoint", "inspect", first.id[:4])
    assert (result.code, result.out) == (2, "")
    assert first.id in result.err
    assert result.err.count("\n") == 1


def test_an_unknown_and_a_deleted_checkpoint_are_told_alike(program: Any, shelf: Any) -> None:
    gone = shelf.put()
    shelf.store.delete([gone.id])
    for reference in (gone.id, "0000-no-such"):
        result = program("checkpoint", "inspect", reference)
        assert (result.code, result.out, result.err) == (3, "", f"Unknown Checkpoint: {reference}\n")


def test_a_hostile_name_is_escaped_in_the_yaml(program: Any, shelf: Any) -> None:
    found = shelf.put("x\x1b[2J", {"dir\n/\x9bf": b""}, shape=Shape.DIRECTORY)
    out = program("checkpoint", "inspect", found.id).out
    assert all(char == "\n" or char.isprintable() for char in out)
    assert yaml.safe_load(out)["status"]["files"][0]["path"] == "dir\n/\x9bf"


def test_a_job_is_inspected_with_its_runs_and_numbers(program: Any, shelf: Any, pending: list[SimpleNamespace]) -> None:
    parent = shelf.put(job="other")
    shelf.put(files={"a": b"123"})
    shelf.put(files={"a": b"4567"}, failure="torn")
    pending.append(SimpleNamespace(name="n", since_ns=0, size=0, reason="r"))
    run = shelf.store.begin_run("digits", ["python", "train.py"], started_ns=0, node="2", parent=parent.id)
    shelf.store.end_run(run, ended_ns=10**9, exit_code=137, status=RunStatus.FAILED)
    document = json.loads(program("training", "inspect", "digits", "--json").out)
    assert yaml.safe_load(program("training", "inspect", "digits").out) == document
    runtime = {
        "status": "failed",
        "startedAt": "1970-01-01 00:00:00 +0000 UTC",
        "endedAt": "1970-01-01 00:00:01 +0000 UTC",
        "command": ["python", "train.py"],
        "exitCode": 137,
        "node": "2",
        "parentID": parent.id,
    }
    assert document["metadata"]["name"] == "digits"
    assert document["runtime"] == runtime
    assert document["checkpoints"] == {"available": 1, "failed": 1, "pending": 1, "size": "7 bytes", "sizeBytes": 7}
    assert document["runs"] == [{"id": run.id, **runtime}]


@pytest.mark.usefixtures("pending")
def test_a_run_that_a_crash_ended_is_interrupted_even_while_a_newer_one_runs(program: Any, shelf: Any) -> None:
    shelf.store.ensure_job("digits", 0)
    for started in (1, 2):
        shelf.store.begin_run("digits", ["train"], started_ns=started, node="0", parent=None)
    with shelf.store.lock_job("digits"):
        document = json.loads(program("training", "inspect", "digits", "--json").out)
    assert document["runtime"]["status"] == "in progress"
    assert [run["status"] for run in document["runs"]] == ["interrupted", "in progress"]
