"""`checkpoint commit` of a job that nobody mounts, and `checkpoint promote`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuse_ckpt import faults
from tests.cli.conftest import Program, Shelf


@pytest.fixture
def left(shelf: Shelf) -> Path:
    """The working tree of a job, with what a daemon that was killed has left in it."""
    shelf.store.ensure_job("digits", 1)
    work = shelf.store.layout.work("digits")
    (work / "checkpoint-1").mkdir()
    (work / "checkpoint-1" / "weights.bin").write_bytes(b"weights")
    (work / "last.bin").write_bytes(b"last")
    (work / "torn.json").write_bytes(b'{"a": ')
    (shelf.store.layout.job("digits") / "break-1-1").write_bytes(b"half a copy")
    return work


def test_what_a_dead_daemon_left_is_committed_as_its_next_mount_would(
    program: Program, shelf: Shelf, left: Path
) -> None:
    said = program("checkpoint", "commit", "digits")
    assert said.code == 1, "one of them is not whole"
    found = {one.name: one for one in shelf.store.checkpoints("digits")}
    assert {name: str(one.state) for name, one in found.items()} == {
        "checkpoint-1": "available", "last.bin": "available", "torn.json": "failed",
    }  # fmt: skip
    lines = said.out.splitlines()
    assert f"Committed {found['last.bin'].id} (digits/last.bin@1)" in lines
    assert any(line.startswith(f"Committed {found['torn.json'].id} (digits/torn.json@1), failed: ") for line in lines)
    assert not (shelf.store.layout.job("digits") / "break-1-1").exists()
    assert shelf.store.verify() == []


def test_one_unit_alone_leaves_the_others(program: Program, shelf: Shelf, left: Path) -> None:
    said = program("checkpoint", "commit", "digits/checkpoint-1", "--json")
    assert (said.code, said.err) == (0, "")
    (record,) = json.loads(said.out)
    assert (record["name"], record["status"], record["job"]) == ("checkpoint-1", "available", "digits")
    assert [one.id for one in shelf.store.checkpoints("digits")] == [record["id"]]
    assert program("checkpoint", "commit", "digits").out.count("Committed") == 2


def test_units_are_told_as_the_last_mount_told_them(program: Program, shelf: Shelf, left: Path) -> None:
    """S7: `--unit GLOB` overrides. By other rules all that is committed would be new, under other names."""
    shelf.store.note_units("digits", ("*.bin", "checkpoint-1/*"))
    assert program("checkpoint", "commit", "digits/checkpoint-1/weights.bin").code == 0
    assert [one.name for one in shelf.store.checkpoints("digits")] == ["checkpoint-1/weights.bin"]
    shelf.store.note_units("digits", ())
    assert shelf.store.job("digits").units == ()


def test_the_root_checkpoint_has_an_empty_name(program: Program, shelf: Shelf, left: Path) -> None:
    (left / "config.json").write_bytes(b"{}")
    said = program("checkpoint", "commit", "digits/")
    (found,) = shelf.store.checkpoints("digits")
    assert (said.code, said.out) == (0, f"Committed {found.id} (digits/@1)\n")


def test_nothing_pending_is_a_line_and_no_error(program: Program, shelf: Shelf, left: Path) -> None:
    program("checkpoint", "commit", "digits")
    assert program("checkpoint", "commit", "digits").out == "Nothing of digits is pending.\n"
    said = program("checkpoint", "commit", "digits/no\x1bsuch", "--json")
    assert (said.code, json.loads(said.out)) == (0, [])
    assert said.err == "Nothing of digits/no\\x1bsuch is pending.\n"


def test_an_unknown_job_is_told(program: Program, shelf: Shelf) -> None:
    for arguments in (["nobody"], ["nobody/x"], ["/x"]):
        said = program("checkpoint", "commit", *arguments)
        assert said.code in (2, 3)
        assert said.err.count("\n") == 1
    assert "ET0002" in program("checkpoint", "commit", "nobody").err


def test_a_job_that_somebody_else_has_in_hand_is_busy(program: Program, shelf: Shelf, left: Path) -> None:
    store = shelf.store
    with store.lock_job("digits"):
        said = program("checkpoint", "commit", "digits")
    assert said.code == 1
    assert "does not answer" in said.err
    assert said.err.count("\n") == 1


def test_what_cannot_be_committed_stays_and_is_told(program: Program, shelf: Shelf, left: Path) -> None:
    def full(point: str) -> None:
        if point == "publish:txn":
            raise OSError(28, "No space left on device")

    with faults.install(full):
        said = program("checkpoint", "commit", "digits/last.bin")
    assert (said.code, said.out) == (1, "")
    assert said.err == "digits/last.bin is not committed: [Errno 28] No space left on device\n"
    assert program("checkpoint", "commit", "digits/last.bin").code == 0
    assert len(shelf.store.checkpoints("digits")) == 1


def test_what_somebody_still_writes_is_left_alone(program: Program, shelf: Shelf, left: Path) -> None:
    with open(left / "last.bin", "ab"):
        said = program("checkpoint", "commit", "digits/last.bin")
    assert (said.code, said.out) == (5, "")
    assert said.err == "digits/last.bin is not committed: it is still being written\n"
    assert (left / "last.bin").read_bytes() == b"last"


def test_a_failed_one_is_promoted_and_remembers_why(program: Program, shelf: Shelf) -> None:
    failed = shelf.put("step_1", failure="its writer was killed by signal 9")
    said = program("checkpoint", "promote", "digits/step_1")
    assert (said.code, said.err, said.out) == (0, "", f"Promoted {failed.id} (digits/step_1@1)\n")
    (record,) = json.loads(program("training", "checkpoints", "digits", "--json").out)
    assert (record["id"], record["status"]) == (failed.id, "available")
    status = json.loads(program("checkpoint", "inspect", failed.id, "--json").out)["status"]
    assert (status["status"], status["promoted"]) == ("available", True)
    assert status["failure"] == "its writer was killed by signal 9"
    assert program("checkpoint", "fetch", failed.id, "--destination", str(shelf.scratch / "to")).err == ""
    again = program("checkpoint", "promote", failed.id)
    assert (again.code, again.out) == (0, f"Checkpoint {failed.id} is promoted already.\n")
    assert json.loads(program("checkpoint", "promote", failed.id, "--json").out)["status"] == "available"


def test_a_good_one_or_an_unknown_one_is_not_promoted(program: Program, shelf: Shelf) -> None:
    good = shelf.put("step_1")
    said = program("checkpoint", "promote", good.id)
    assert (said.code, said.out) == (2, "")
    assert said.err == f"Checkpoint {good.id} is available: only a failed one can be promoted.\n"
    said = program("checkpoint", "promote", "digits/other")
    assert (said.code, said.err) == (3, "Unknown Checkpoint: digits/other\n")
