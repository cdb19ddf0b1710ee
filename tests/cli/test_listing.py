from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import lmdb
import pytest

from fuse_ckpt.model import Metadata, RunStatus, Shape

JSON_KEYS = [
    "id",
    "name",
    "node",
    "step",
    "trainLoss",
    "evalLoss",
    "model",
    "version",
    "inferenceReady",
    "timestamp",
    "status",
    "sizeBytes",
    "resumable",
    "parentId",
    "tags",
    "job",
    "replicated",
]
HEADER = "ID │ NAME │ NODE │ STEP │ TRAIN LOSS │ EVAL LOSS │ MODEL │ VERSION │ INFERENCE READY │ TIMESTAMP"
TORN = "model.pt ends in the middle of a tensor"


def headings(line: str) -> str:
    return " │ ".join(cell.strip() for cell in line.split("│"))


@pytest.mark.usefixtures("pending")
def test_a_jobs_checkpoints_are_a_table_in_the_agreed_form(program: Any, shelf: Any) -> None:
    said = Metadata(120, 0.25, 0.5, "LlamaModel", "5.13.0", inference_ready=True, resumable=True)
    first = shelf.put("checkpoint-120", {"config.json": b"{}"}, shape=Shape.DIRECTORY, metadata=said)
    second = shelf.put("", {"model.safetensors": b"x"}, shape=Shape.ROOT, metadata=Metadata(), node="3")
    result = program("training", "checkpoints", "digits")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "List of Checkpoints for a Training Job\n"
        "ID                                   │ NAME           │ NODE │ STEP │ TRAIN LOSS │ EVAL LOSS │ MODEL      │"
        " VERSION │ INFERENCE READY │ TIMESTAMP\n"
        f"{first.id} │ checkpoint-120 │ 0    │ 120  │ 0.25       │ 0.5       │ LlamaModel │"
        " 5.13.0  │ true            │ 2025-06-05 09:07:43.816 +0000 UTC\n"
        f"{second.id} │                │ 3    │      │            │           │            │"
        "         │ false           │ 2025-06-05 09:07:43.816 +0000 UTC\n"
    )


@pytest.mark.usefixtures("pending")
def test_a_job_without_checkpoints_lists_the_header_alone(program: Any, shelf: Any) -> None:
    shelf.store.ensure_job("empty", 1)
    result = program("training", "checkpoints", "empty")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"List of Checkpoints for a Training Job\n{HEADER}\n"
    assert json.loads(program("training", "checkpoints", "empty", "--json").out) == []


@pytest.mark.usefixtures("pending")
def test_wide_adds_five_columns_at_the_end(program: Any, shelf: Any) -> None:
    shelf.put(files={"ckpt.pt": b"x" * 2048})
    result = program("training", "checkpoints", "digits", "--wide")
    assert headings(result.out.splitlines()[1]) == f"{HEADER} │ SIZE │ STATUS │ RESUMABLE │ TAGS │ REPLICATED"
    assert result.rows[0][10:] == ["2 KB", "available", "true", "", "local"]


def test_only_what_can_be_used_is_listed_and_one_line_counts_the_rest(
    program: Any, shelf: Any, pending: list[SimpleNamespace]
) -> None:
    good = shelf.put()
    torn = shelf.put("torn.pt", failure=TORN)
    pending.append(SimpleNamespace(name="next.pt", since_ns=1, size=7, reason="is being written"))
    result = program("training", "checkpoints", "digits")
    assert [row[0] for row in result.rows] == [good.id]
    assert result.err == "1 pending, 1 failed (--all shows them)\n"
    result = program("training", "checkpoints", "digits", "--all", "--wide")
    assert [(row[0], row[1], row[11]) for row in result.rows] == [
        (good.id, "ckpt.pt", "available"),
        (torn.id, "torn.pt", "failed"),
        ("", "next.pt", "pending"),
    ]
    assert result.err == "1 pending, 1 failed (--wide shows which)\n"


@pytest.mark.usefixtures("pending")
def test_json_is_an_array_oldest_first_with_the_agreed_keys(program: Any, shelf: Any) -> None:
    parent = shelf.put()
    child = shelf.put("", metadata=Metadata(step=7, train_loss=0.1234567890123), parent=parent.id, shape=Shape.ROOT)
    records = json.loads(program("training", "checkpoints", "digits", "--json").out)
    assert [record["id"] for record in records] == [parent.id, child.id]
    assert list(records[1]) == JSON_KEYS
    assert records[1] == {
        "id": child.id,
        "name": "",
        "node": "0",
        "step": 7,
        "trainLoss": 0.1234567890123,
        "evalLoss": None,
        "model": None,
        "version": None,
        "inferenceReady": False,
        "timestamp": "2025-06-05 09:07:43.816 +0000 UTC",
        "status": "available",
        "sizeBytes": child.size,
        "resumable": False,
        "parentId": parent.id,
        "tags": [],
        "job": "digits",
        "replicated": "local",
    }


def test_json_of_everything_has_pending_ones_without_an_id(
    program: Any, shelf: Any, pending: list[SimpleNamespace]
) -> None:
    shelf.put()
    pending.append(SimpleNamespace(name="next.pt", since_ns=1, size=7, reason="is being written"))
    result = program("training", "checkpoints", "digits", "--json", "--all")
    record = json.loads(result.out)[1]
    assert list(record) == JSON_KEYS
    assert (record["id"], record["status"], record["sizeBytes"]) == (None, "pending", 7)


@pytest.mark.usefixtures("pending")
@pytest.mark.parametrize("store_exists", [False, True])
def test_an_unknown_job_is_not_found(program: Any, shelf: Any, store_exists: bool) -> None:
    if store_exists:
        shelf.put()
    for command in ("checkpoints", "inspect"):
        result = program("training", command, "nobody")
        assert (result.code, result.out) == (3, "")
        assert result.err.startswith("Unknown training job: nobody")
        assert result.err.endswith('{"code":"ET0002"}\n')
    assert shelf.root.exists() == store_exists


@pytest.mark.parametrize(
    "command",
    [
        "training checkpoints JOB",
        "training inspect JOB",
        "training delete JOB --yes",
        "training fetch JOB",
        "checkpoint list --job JOB",
        "checkpoint gc --job JOB",
        "checkpoint plot JOB",
        "checkpoint commit JOB",
        "checkpoint wait JOB/NAME",
    ],
)
@pytest.mark.parametrize("job", ["", "nobody", "x" * 600])
def test_every_command_says_which_job_it_does_not_know(program: Any, shelf: Any, command: str, job: str) -> None:
    shelf.put()
    result = program(*(word.replace("JOB", job) for word in command.split()))
    assert (result.code, result.out) == (3, "")
    assert result.err == f'Unknown training job: {job} (see "fuse-ckpt training list") {{"code":"ET0002"}}\n'


def test_listing_where_there_is_no_store_makes_none(program: Any, shelf: Any) -> None:
    assert program("checkpoint", "list").rows == []
    assert program("checkpoint", "list", "--json").out == "[]\n"
    assert program("training", "list", "--json").out == "[]\n"
    assert program("checkpoint", "inspect", "abcd1234").err == "Unknown Checkpoint: abcd1234\n"
    assert not shelf.root.exists()


def test_a_directory_that_is_no_store_is_refused_in_one_line(program: Any, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    result = program("--store", str(tmp_path), "checkpoint", "list")
    assert (result.code, result.out) == (1, "")
    assert str(tmp_path) in result.err
    assert result.err.count("\n") == 1


def test_the_store_option_wins_over_the_environment(program: Any, shelf: Any, tmp_path: Path) -> None:
    shelf.put()
    assert len(program("checkpoint", "list").rows) == 1
    assert program("--store", str(tmp_path / "other"), "checkpoint", "list").rows == []


def test_the_whole_stores_list_names_the_job_and_the_state(program: Any, shelf: Any) -> None:
    shelf.put(job="b")
    shelf.put(job="a", failure=TORN)
    result = program("checkpoint", "list")
    assert result.out.startswith("List of Checkpoints\n")
    assert [(row[1], row[-1]) for row in result.rows] == [("b", "available"), ("a", "failed")]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ["a-1", "b-1", "a-2", "b-2"]),
        (("--job", "one"), ["a-1", "b-1"]),
        (("--name", "a-*"), ["a-1", "a-2"]),
        (("--limit", "3"), ["b-1", "a-2", "b-2"]),
        (("--sort", "eval-loss"), ["a-2", "b-1", "a-1", "b-2"]),
        (("--sort", "eval-loss", "--limit", "1"), ["a-2"]),
        (("--sort", "name"), ["a-1", "a-2", "b-1", "b-2"]),
        (("--status", "failed"), ["b-2"]),
        (("--status", "deleted"), ["gone"]),
    ],
)
def test_the_list_can_be_narrowed_and_sorted(
    program: Any, shelf: Any, options: tuple[str, ...], names: list[str]
) -> None:
    shelf.put("a-1", job="one", metadata=Metadata(eval_loss=0.9))
    shelf.put("b-1", job="one", metadata=Metadata(eval_loss=0.5))
    shelf.put("a-2", job="two", metadata=Metadata(eval_loss=0.1))
    shelf.put("b-2", job="two", failure=TORN)
    shelf.store.delete([shelf.put("gone", job="two").id])
    assert [item["name"] for item in json.loads(program("checkpoint", "list", "--json", *options).out)] == names


def test_a_table_has_as_many_rows_as_somebody_reads(program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.cli.checkpoint._ROWS", 2)
    for step in (1, 2, 3):
        shelf.put(f"checkpoint-{step}", metadata=Metadata(step=step))

    def steps(*options: str) -> tuple[list[str], str]:
        said = program("checkpoint", "list", *options)
        return [row[4] for row in said.rows], said.err

    assert steps() == (["2", "3"], "Only the newest 2 are shown: --limit N shows N, --json all.\n")
    assert steps("--sort", "step") == (["1", "2"], "Only the first 2 are shown: --limit N shows N, --json all.\n")
    assert steps("--limit", "3") == (["1", "2", "3"], "")
    assert steps("--limit", "1") == (["3"], ""), "who asked for that many knows"
    assert steps("--name", "*-[12]") == (["1", "2"], "")
    assert len(json.loads(program("checkpoint", "list", "--json").out)) == 3


def test_the_list_of_an_unknown_job_is_not_found(program: Any, shelf: Any) -> None:
    shelf.put()
    assert program("checkpoint", "list", "--job", "nobody").code == 3


def test_a_damaged_record_is_told_and_the_others_are_listed(program: Any, shelf: Any) -> None:
    broken, whole = shelf.put(), shelf.put("b.pt")
    index = shelf.store.layout.index
    shelf.close()
    with lmdb.open(str(index), lock=False, max_dbs=32) as environment, environment.begin(write=True) as txn:
        records = environment.open_db(b"checkpoints", txn)
        key = UUID(broken.id).bytes
        txn.put(key, bytes(txn.get(key, db=records) or b"")[:-1] + b"?", db=records)
    result = program("checkpoint", "list")
    assert result.code == 0
    assert [row[0] for row in result.rows] == [whole.id]
    assert result.err.count("\n") == 1
    assert broken.id in result.err


@pytest.mark.usefixtures("pending")
@pytest.mark.parametrize("command", [("training", "checkpoints", "digits"), ("checkpoint", "list")])
def test_a_hostile_name_reaches_no_terminal_raw(program: Any, shelf: Any, command: tuple[str, ...]) -> None:
    name = "x\x1b]0;owned\x07\n\x9b2J\u202e" + b"\xff".decode(errors="surrogateescape")
    shelf.put(name, metadata=Metadata(model="m\x1b[2J", version="v\r"))
    for form in ((), ("--json",)):
        out = program(*command, *form).out
        assert all(char == "\n" or char.isprintable() for char in out)
        out.encode()
    assert r"x\x1b]0;owned\x07\x0a\x9b2J\u202e\xff" in program(*command).out
    assert json.loads(program(*command, "--json").out)[0]["name"] == name


def test_a_run_counts_as_running_only_while_somebody_serves_the_job(program: Any, shelf: Any) -> None:
    shelf.put()
    shelf.store.begin_run("digits", ["python", "train.py"], started_ns=5, node="0", parent=None)
    assert json.loads(program("training", "list", "--json").out)[0]["status"] == "interrupted"
    with shelf.store.lock_job("digits"):
        assert json.loads(program("training", "list", "--json").out)[0]["status"] == "in progress"


def test_the_list_of_jobs_counts_their_usable_checkpoints(program: Any, shelf: Any) -> None:
    shelf.put(files={"a": b"1234"})
    shelf.put(files={"a": b"12345"}, failure=TORN)
    run = shelf.store.begin_run("digits", ["train"], started_ns=0, node="0", parent=None)
    shelf.store.end_run(run, ended_ns=1, exit_code=0, status=RunStatus.SUCCEEDED)
    shelf.store.ensure_job("mounted-by-hand", 2**61)
    result = program("training", "list")
    assert result.out.splitlines()[0] == "List of Training Jobs"
    assert result.rows == [
        ["digits", "succeeded", "1", "9 bytes", "1970-01-01 00:00:00 +0000 UTC"],
        ["mounted-by-hand", "", "0", "0 bytes", ""],
    ]
