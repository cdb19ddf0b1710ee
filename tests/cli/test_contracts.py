"""What scripts rely on: each test quotes the sentence of the output contracts that it is about."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fuse_ckpt import session
from fuse_ckpt.errors import JobExists
from fuse_ckpt.model import Metadata, RunStatus, Shape

ID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,2}[1-9]|\.\d?[1-9])? \+0000 UTC"
TORN = "model.pt ends in the middle of a tensor"
COLUMNS = ["ID", "NAME", "NODE", "STEP", "TRAIN LOSS", "EVAL LOSS", "MODEL", "VERSION", "INFERENCE READY", "TIMESTAMP"]

READING = [
    ("training", "checkpoints", "digits"),
    ("training", "inspect", "digits"),
    ("training", "list"),
    ("checkpoint", "list"),
    ("checkpoint", "inspect", "digits:latest"),
    ("checkpoint", "lineage", "digits:latest"),
    ("checkpoint", "plot", "digits"),
    ("checkpoint", "wait", "digits:latest"),
]


@pytest.mark.usefixtures("pending")
def test_a_title_line_then_columns_in_this_order(program: Any, shelf: Any) -> None:
    """`training checkpoints`: a title line `List of Checkpoints for a Training Job`, then columns, in this order."""
    shelf.put()
    title, header, row = program("training", "checkpoints", "digits").out.splitlines()
    assert title == "List of Checkpoints for a Training Job"
    assert [cell.strip() for cell in header.split("│")] == COLUMNS
    cells = [cell.strip() for cell in row.split("│")]
    assert re.fullmatch(ID, cells[0])
    assert re.fullmatch(TIME, cells[-1])


@pytest.mark.usefixtures("pending")
def test_a_missing_value_is_an_empty_cell(program: Any, shelf: Any) -> None:
    """A missing value is an empty cell. `name` is "" for the root checkpoint, numbers are numbers or null."""
    shelf.put("", {"model.safetensors": b"x"}, shape=Shape.ROOT, metadata=Metadata(train_loss=math.nan, weights=True))
    (row,) = program("training", "checkpoints", "digits").rows
    assert row[1:9] == ["", "0", "", "", "", "", "", "false"]
    (record,) = json.loads(program("training", "checkpoints", "digits", "--json").out)
    assert (record["name"], record["node"], record["step"], record["trainLoss"]) == ("", "0", None, None)


@pytest.mark.usefixtures("pending")
@pytest.mark.parametrize("step", [0, 12345678901234])
def test_numbers_are_numbers(program: Any, shelf: Any, step: int) -> None:
    """`node` is a string ("0"), numbers are numbers or null."""
    shelf.put(node="3", metadata=Metadata(step, 1e-12, 0.0, inference_ready=True))
    (record,) = json.loads(program("training", "checkpoints", "digits", "--json").out)
    assert (record["node"], record["step"], record["trainLoss"], record["evalLoss"]) == ("3", step, 1e-12, 0.0)
    assert record["inferenceReady"] is True
    assert isinstance(record["sizeBytes"], int)


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_standard_output_is_pure_json(
    program: Any, shelf: Any, pending: list[SimpleNamespace], command: tuple[str, ...]
) -> None:
    """`--json`: standard output is pure JSON."""
    shelf.put(metadata=Metadata(1, 0.5, 0.5, resumable=True, weights=True))
    shelf.put("torn.pt", failure=TORN)
    pending.append(SimpleNamespace(name="next\x1b.pt", since_ns=1, size=7))
    result = program(*command, "--json")
    assert result.code == 0
    assert json.loads(result.out) is not None
    assert result.out.isascii()


@pytest.mark.parametrize(("arguments", "shown"), [((), "--all shows them"), (("--all",), "--wide shows which")])
def test_one_line_on_standard_error_says_how_many(
    program: Any, shelf: Any, pending: list[SimpleNamespace], arguments: tuple[str, ...], shown: str
) -> None:
    """`--all` adds pending and failed, and where there are such, one line on standard error says how many."""
    shelf.put("torn.pt", failure=TORN)
    pending += [SimpleNamespace(name=f"{n}.pt", since_ns=1, size=7) for n in range(2)]
    result = program("training", "checkpoints", "digits", *arguments)
    assert (result.code, result.err) == (0, f"2 pending, 1 failed ({shown})\n")
    assert len(result.rows) == (3 if arguments else 0)


def test_inspect_has_the_agreed_form(program: Any, shelf: Any) -> None:
    """`inspect`: `kind`, `metadata.{name,id}`, `spec.{…}`, `status.{status,size,files[].{path,size},metadata.{…}}`,
    paths relative to the checkpoint's root, sizes as `725 bytes`, beside them `sizeBytes`, and `digest` per file,
    `createdAt`, `parentID`, `resumable`, `failure` where it failed."""
    found = shelf.put("d/step_5", {"a/b.bin": b"x" * 725}, shape=Shape.DIRECTORY, failure=TORN)
    document = yaml.safe_load(program("checkpoint", "inspect", found.id).out)
    assert list(document) == ["kind", "metadata", "spec", "status"]
    assert document["metadata"] == {"name": "d/step_5", "id": found.id}
    assert set(document["spec"]) == {"fromLocalFiles", "storageProvider", "sourcePath"}
    status = document["status"]
    assert {"status", "size", "sizeBytes", "files", "metadata", "createdAt", "parentID", "resumable"} <= set(status)
    assert (status["status"], status["failure"], status["size"]) == ("failed", TORN, "725 bytes")
    (file,) = status["files"]
    assert (file["path"], file["size"], file["sizeBytes"], len(file["digest"])) == ("a/b.bin", "725 bytes", 725, 64)
    assert list(status["metadata"]) == [
        *("name", "node", "step", "trainLoss", "evalLoss", "model", "version", "inferenceReady"),
    ]


@pytest.mark.usefixtures("pending")
@pytest.mark.parametrize("status", [RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.INTERRUPTED])
def test_a_jobs_runtime_tells_how_it_ended(program: Any, shelf: Any, status: RunStatus) -> None:
    """`training inspect`: `runtime.status` is one of `in progress`, `succeeded`, `failed`, `interrupted`, and start,
    end, command, parent, counts, bytes."""
    parent = shelf.put("parent.pt")
    run = shelf.store.begin_run("digits", ["train"], 10**18, parent=parent.id)
    shelf.store.end_run(run, 2 * 10**18, 0, status)
    document = json.loads(program("training", "inspect", "digits", "--json").out)
    runtime = document["runtime"]
    assert (runtime["status"], runtime["command"], runtime["parentID"]) == (status.value, ["train"], parent.id)
    assert re.fullmatch(TIME, runtime["startedAt"])
    assert re.fullmatch(TIME, runtime["endedAt"])
    assert document["checkpoints"] == {
        **{"available": 1, "failed": 0, "pending": 0, "size": f"{parent.size} bytes", "sizeBytes": parent.size},
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("checkpoint", "inspect", "digits/none"), 3),
        (("checkpoint", "inspect", "nobody:latest"), 3),
        (("checkpoint", "fetch", "0123abcd"), 3),
        (("checkpoint", "delete", "digits/none", "--yes"), 3),
        (("checkpoint", "lineage", "digits/none"), 3),
        (("checkpoint", "wait", "0123abcd"), 3),
        (("checkpoint", "list", "--job", "nobody"), 3),
        (("checkpoint", "plot", "nobody"), 3),
        (("training", "checkpoints", "nobody"), 3),
        (("training", "inspect", "nobody"), 3),
        (("checkpoint", "inspect", ""), 2),
        (("checkpoint", "lineage", ""), 2),
        (("checkpoint", "delete", "digits/ckpt.pt"), 2),
        (("training", "run", "digits", "train"), 2),
        (("umount", "/nonexistent/nothing"), 2),
    ],
)
def test_an_error_is_one_line_and_its_exit_code_says_what_kind(
    program: Any, shelf: Any, arguments: tuple[str, ...], code: int
) -> None:
    """Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 corrupt, 5 busy. Errors: one line on standard error, no
    traceback. An unknown job ends its line with `{"code":"ET0002"}`."""
    shelf.put()
    result = program(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err
    if "nobody" in arguments:
        assert result.err.endswith('{"code":"ET0002"}\n')
    elif code == 3:
        assert result.err == f"Unknown Checkpoint: {arguments[2]}\n"


def test_a_checkpoint_in_use_is_busy(program: Any, shelf: Any) -> None:
    """5 busy (leased, pinned, locked, still bound)."""
    found = shelf.put()
    with shelf.store.lease(found.id):
        result = program("checkpoint", "delete", found.id, "--yes")
    assert (result.code, result.err.count("\n")) == (5, 1)


def test_a_job_that_exists_already_has_its_code(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that exists already ends its line with `{"code":"ET0009"}`; 125 where `training run` failed itself before
    COMMAND began."""

    def exists(*_: object, **__: object) -> None:
        raise JobExists("digits")

    monkeypatch.setattr(session, "run_training", exists)
    result = program("training", "run", "digits", "--", "train")
    assert result.code == 125
    assert result.err.endswith('{"code":"ET0009"}\n')
