"""`checkpoint gc`, `training delete|fetch` and `stats`, as a person uses them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest

from fuse_ckpt import faults
from fuse_ckpt.cli import access
from fuse_ckpt.cli.rules import Bytes
from fuse_ckpt.model import Metadata

DONE = "0 bytes freed.\n"


def numbered(shelf: Any, count: int, job: str = "digits") -> list[Any]:
    """Checkpoints checkpoint-1 … of which training keeps no file."""
    said = [Metadata(step=n, eval_loss=1 / n, resumable=True, weights=True) for n in range(1, count + 1)]
    saved = [shelf.put(f"checkpoint-{meta.step}", job=job, metadata=meta) for meta in said]
    for file in shelf.scratch.iterdir():
        file.write_bytes(b"") if file.stat().st_nlink == 1 else file.rename(f"{file}.gone")
    for file in shelf.scratch.glob("*.gone"):
        file.unlink()
        file.with_suffix("").touch()
    return saved


@contextmanager
def locked(path: Path) -> Iterator[TextIO]:
    """Hold the lock file as another process would."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


# gc


def test_gc_of_nothing_frees_nothing(program: Any, shelf: Any) -> None:
    assert (program("checkpoint", "gc").code, program("checkpoint", "gc").out) == (0, DONE)
    shelf.put()
    assert program("checkpoint", "gc").out == DONE
    assert json.loads(program("checkpoint", "gc", "--json").out)["freedBytes"] == 0


def test_a_dry_run_tells_of_each_one_whether_it_stays_and_why(program: Any, shelf: Any) -> None:
    one, two, three, four = numbered(shelf, 4)
    shelf.store.pin(one.id)
    shelf.store.tag(two.id, "paper")
    result = program("checkpoint", "gc", "--policy", "keep-last=1", "--trash-ttl", "0", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert [cell.strip() for cell in result.out.splitlines()[1].split("│")] == [
        "ID", "JOB", "NAME", "STEP", "ACTION", "REASON", "FREES",
    ]  # fmt: skip
    assert result.rows[:-1] == [
        [one.id, "digits", "checkpoint-1", "1", "keep", "pinned", ""],
        [two.id, "digits", "checkpoint-2", "2", "keep", "tagged paper", ""],
        [three.id, "digits", "checkpoint-3", "3", "remove", "no rule keeps it", "4 KB"],
        [four.id, "digits", "checkpoint-4", "4", "keep", "keep-last=1", ""],
    ]
    assert result.out.splitlines()[-1] == "4 KB would come free."
    assert len(shelf.store.checkpoints()) == 4
    rows = json.loads(program("checkpoint", "gc", "--policy", "keep-last=1", "--dry-run", "--json").out)["checkpoints"]
    assert [row["action"] for row in rows] == ["keep", "keep", "remove", "keep"]
    assert [row["freesBytes"] for row in rows] == [None, None, 4096, None]


def test_a_policy_moves_to_the_trash_and_time_empties_it(program: Any, shelf: Any) -> None:
    one, two, three = numbered(shelf, 3)
    result = program("checkpoint", "gc", "--policy", "keep-last=1", "--job", "digits")
    assert result.out == (
        f"Moved to the trash {one.id} (digits/checkpoint-1): no rule keeps it\n"
        f"Moved to the trash {two.id} (digits/checkpoint-2): no rule keeps it\n" + DONE
    )
    assert [left.id for left in shelf.store.checkpoints()] == [three.id]
    dry = program("checkpoint", "gc", "--dry-run")
    assert [row[4:] for row in dry.rows[:-1]] == [["keep", "deleted, and can be restored for 6 d 23 h", ""]] * 2
    result = program("checkpoint", "gc", "--trash-ttl", "0")
    assert result.out == (
        f"Collected {one.id} (digits/checkpoint-1): deleted, and its time has passed\n"
        f"Collected {two.id} (digits/checkpoint-2): deleted, and its time has passed\n"
        "8 KB freed.\n"
    )
    assert shelf.store.trash() == []


def test_a_policy_without_a_trash_collects_at_once(program: Any, shelf: Any) -> None:
    numbered(shelf, 3)
    result = program("checkpoint", "gc", "--policy", "keep-last=1", "--trash-ttl", "0")
    assert [line.split()[0] for line in result.out.splitlines()] == ["Collected", "Collected", "8"]
    assert (len(shelf.store.checkpoints()), shelf.store.trash()) == (1, [])


def test_jobs_are_treated_by_their_own_policies_where_none_is_given(program: Any, shelf: Any) -> None:
    numbered(shelf, 3, job="ruled")
    numbered(shelf, 3, job="free")
    shelf.store.set_rules("ruled", "keep-last=2", trash_ttl_ns=0)
    assert program("checkpoint", "gc").out.count("ruled/checkpoint-1") == 1
    assert len(shelf.store.checkpoints("ruled")) == 2
    assert len(shelf.store.checkpoints("free")) == 3


def test_min_free_takes_the_trash_first_and_never_the_newest(program: Any, shelf: Any) -> None:
    one, two, three = numbered(shelf, 3)
    shelf.store.delete([two.id])
    result = program("checkpoint", "gc", "--min-free", "1000TB", "--dry-run")
    assert {row[0]: row[4:6] for row in result.rows[:-1]} == {
        two.id: ["remove", "deleted, and the disk is nearly full"],
        one.id: ["remove", "the disk is nearly full"],
    }
    result = program("checkpoint", "gc", "--min-free", "1000TB")
    assert (result.code, " TB are lacking still: what is left is " in result.err) == (0, True)
    assert [left.id for left in shelf.store.checkpoints()] == [three.id]
    assert shelf.store.trash() == []
    result = program("checkpoint", "gc", "--min-free", "1")
    assert (result.out, result.err) == (DONE, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--policy", "keep-last=x"],
        ["--policy", "none"],
        ["--policy", ""],
        ["--trash-ttl", "7"],
        ["--trash-ttl", "-1d"],
        ["--min-free", "much"],
        ["--min-free", "-1"],
        ["--all-files"],
    ],
)
def test_what_is_not_understood_is_a_usage_error_in_one_line(program: Any, shelf: Any, arguments: list[str]) -> None:
    numbered(shelf, 2)
    result = program("checkpoint", "gc", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert len(shelf.store.checkpoints()) == 2


def test_gc_of_an_unknown_job_says_so(program: Any, shelf: Any) -> None:
    assert program("checkpoint", "gc", "--job", "none").code == 3
    shelf.put()
    result = program("checkpoint", "gc", "--job", "none")
    assert result.code == 3
    assert "ET0002" in result.err


def test_a_second_gc_is_told_so(program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.store.collection.TURN", 0.1)
    [one, _] = numbered(shelf, 2)
    shelf.store.delete([one.id])
    root = shelf.root
    shelf.close()
    with locked(root / "locks" / "collect") as lock:
        lock.write("Process 7 (checkpoint gc)")
        lock.flush()
        result = program("checkpoint", "gc", "--trash-ttl", "0")
    assert (result.code, result.err) == (5, "Process 7 (checkpoint gc) is collecting: try again when it is done.\n")
    assert program("checkpoint", "gc", "--trash-ttl", "0").code == 0


def test_what_a_mount_shows_is_left_alone_and_told(program: Any, shelf: Any) -> None:
    [one, _] = numbered(shelf, 2)
    shelf.store.delete([one.id])
    with locked(shelf.root / "locks" / "use-1") as use:
        use.write(f"a mount of job digits\n{one.id}\n")
        use.flush()
        result = program("checkpoint", "gc", "--trash-ttl", "0")
    assert (result.code, result.out) == (0, DONE)
    assert result.err == f"Left alone {one.id}: in use by a mount of job digits\n"


@pytest.mark.parametrize("point", ["delete:manifest", "collect:record", "collect:manifest", "collect:blob"])
def test_control_c_leaves_nothing_half_removed(program: Any, shelf: Any, point: str) -> None:
    saved = numbered(shelf, 3)

    def interrupt(reached: str) -> None:
        if reached == point:
            raise KeyboardInterrupt

    with faults.install(interrupt):
        result = program("checkpoint", "gc", "--policy", "keep-last=1", "--trash-ttl", "0")
    assert (result.code, result.out) == (130, "")
    assert shelf.store.verify() == []
    assert saved[-1].id in {left.id for left in shelf.store.checkpoints()}
    assert program("checkpoint", "gc", "--policy", "keep-last=1", "--trash-ttl", "0").code == 0
    assert len(shelf.store.checkpoints()) == len(list((shelf.root / "blobs").glob("*/*"))) == 1


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("1", 1), ("1K", 1024), ("20GB", 20 << 30), ("1.5 MiB", 1536 << 10), ("2tb", 2 << 40), ("0", 0), ("7b", 7)],
)
def test_a_size_is_read_as_people_write_it(text: str, bytes: int) -> None:
    assert Bytes().convert(text, None, None) == bytes


# working trees and the end of jobs


def in_work(shelf: Any, path: str, data: bytes, job: str = "digits") -> Path:
    file: Path = shelf.store.layout.work(job) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def test_gc_work_lists_what_no_checkpoint_holds_and_keeps_it(program: Any, shelf: Any) -> None:
    shelf.put("ckpt.pt", {"ckpt.pt": b"weights"})
    copy = in_work(shelf, "ckpt.pt", b"weights")
    log = in_work(shelf, "logs/a\x1b[2J\n.log", b"x" * 2000)
    result = program("checkpoint", "gc", "--work", "--dry-run")
    assert result.out.splitlines()[-3:] == [
        "digits: 1 files of its working tree would be removed, 4 KB freed.",
        "In no checkpoint, and kept (training fetch copies them, --all-files removes them):",
        r"  logs/a\x1b[2J\x0a.log (2 KB)",
    ]
    assert copy.exists()
    assert program("checkpoint", "gc", "--work").code == 0
    assert (copy.exists(), log.exists()) == (False, True)
    document = json.loads(program("checkpoint", "gc", "--work", "--all-files", "--json").out)
    assert document["work"][0]["loose"] == [{"path": "logs/a\x1b[2J\n.log", "sizeBytes": 2000}]
    assert not log.exists()
    assert len(shelf.store.checkpoints()) == 1


def test_gc_work_leaves_a_mounted_job(program: Any, shelf: Any) -> None:
    shelf.put("ckpt.pt", {"ckpt.pt": b"weights"})
    copy = in_work(shelf, "ckpt.pt", b"weights")
    with locked(shelf.root / "locks" / "job-digits"):
        result = program("checkpoint", "gc", "--work")
    assert (result.code, result.err) == (0, "Job digits is mounted: its working tree stays as it is.\n")
    assert copy.exists()


def test_training_delete_tells_what_goes_and_deletes_it(program: Any, shelf: Any) -> None:
    one = shelf.put("ckpt.pt", {"ckpt.pt": b"weights"})
    in_work(shelf, "train.log", b"log")
    result = program("training", "delete", "digits", "--dry-run")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "Would delete job digits",
        "  1 checkpoints, to the trash: 4 KB come free when it is emptied (checkpoint gc), 0 bytes stay with other "
        "jobs' checkpoints",
        "  1 files of its working tree: 4 KB come free now",
        "  1 of these are in no checkpoint (training fetch copies them):",
        "    train.log (3 bytes)",
    ]
    assert shelf.store.job("digits")
    assert program("training", "delete", "digits", "--yes").out.startswith("Deleted job digits\n")
    assert program("training", "checkpoints", "digits").code == 3
    assert program("training", "list").rows == []
    assert program("checkpoint", "restore", one.id).code == 0
    assert program("training", "checkpoints", "digits").rows[0][0] == one.id


def test_training_delete_without_a_trash_collects_at_once(program: Any, shelf: Any) -> None:
    shelf.put()
    shelf.put(job="other")
    shelf.store.set_rules("digits", trash_ttl_ns=0)
    assert program("training", "delete", "digits", "--yes").code == 0
    assert shelf.store.trash() == []
    assert len(shelf.store.checkpoints()) == 1


def test_training_delete_asks_and_is_refused_where_one_is_in_use(
    program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shelf.put()
    with open(os.devnull) as nothing, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        assert program("training", "delete", "digits").code == 2
    shelf.store.pin(one.id)
    result = program("training", "delete", "digits", "--yes")
    assert result.code == 5
    assert "is pinned" in result.err
    assert program("training", "delete", "none", "--yes").code == 3
    assert shelf.store.checkpoint(one.id).pinned


def test_training_fetch_copies_the_logs(
    program: Any, shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shelf.put("ckpt.pt", {"ckpt.pt": b"weights"})
    in_work(shelf, "ckpt.pt", b"weights")
    in_work(shelf, "logs/train.log", b"log")
    result = program("training", "fetch", "digits")
    assert (result.code, result.out) == (0, f"Fetched 1 file (3 bytes) into {tmp_path}/digits\n")
    assert (tmp_path / "digits/logs/train.log").read_bytes() == b"log"
    assert program("training", "fetch", "digits").code == 2
    assert program("training", "fetch", "digits", "--destination", "other").code == 0
    assert program("training", "fetch", "none").code == 3


# stats


def test_stats_tell_what_the_store_holds(program: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "pending", lambda store, job: [object()] if job == "digits" else [])
    shelf.put("a.pt", {"own": b"12345", "shared": b"123"})
    shelf.put("b.pt", {"shared": b"123"}, job="other")
    shelf.put("c.pt", {"c": b"1"}, failure="torn")
    shelf.store.delete([shelf.put("d.pt", {"d": b"1234567"}).id])
    shelf.store.set_rules("digits", "keep-last=3", 3600 * 10**9, 5)
    document = json.loads(program("stats", "--json").out)
    store = document["store"]
    assert [store[state] for state in ("available", "failed", "deleted", "pending")] == [2, 1, 1, 1]
    assert (store["logicalBytes"], store["trashBytes"]) == (12, 7)
    assert (store["blobs"], store["blobBytes"], store["sharedBytes"]) == (4, 16, 3)
    assert store["indexBytes"] > 0
    assert 0 < store["freeBytes"] < store["diskBytes"]
    assert document["jobs"][0] == {
        "name": "digits", "available": 1, "failed": 1, "deleted": 1, "pending": 1, "logicalBytes": 9, "trashBytes": 7,
        "mounted": False, "retain": "keep-last=3", "trashTtlSeconds": 3600, "minFreeBytes": 5, "replicate": None,
    }  # fmt: skip
    assert document["mounts"] == []
    assert "keep-last=3" in program("stats").out


def test_stats_in_prometheus_text_are_well_formed(program: Any, shelf: Any) -> None:
    shelf.put("a.pt", {"a": b"12345"})
    shelf.put("a.pt", {"a": b"12345"}, job='odd="\\job')
    lines = program("stats", "--prometheus").out.splitlines()
    sample = re.compile(r'fuse_ckpt_[a-z_]+(\{[a-z_]+="([^"\\\n]|\\.)*"(,[a-z_]+="([^"\\\n]|\\.)*")*\})? [0-9]+')
    assert all(sample.fullmatch(line) or re.fullmatch(r"# (HELP|TYPE) fuse_ckpt_\S+ .+", line) for line in lines)
    assert "fuse_ckpt_blob_bytes 5" in lines
    assert "fuse_ckpt_shared_bytes 5" in lines
    assert 'fuse_ckpt_checkpoints{job="digits",state="available"} 1' in lines
    assert r'fuse_ckpt_logical_bytes{job="odd=\"\\job"} 5' in lines
    assert len(lines) == len(set(lines))


def test_stats_without_a_store_tell_of_none(program: Any) -> None:
    assert json.loads(program("stats", "--json").out)["jobs"] == []
    assert program("stats", "--prometheus").code == 0
    assert program("stats", "--json", "--prometheus").code == 2
