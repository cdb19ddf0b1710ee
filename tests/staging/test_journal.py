"""Sealed drafts on disk: links, the journal, and what another process makes of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse_ckpt import faults
from fuse_ckpt.model import Entry, Kind, Shape, Unit
from fuse_ckpt.staging import journal
from fuse_ckpt.staging.journal import Journal, Linked, Sealed
from fuse_ckpt.staging.units import UnitRules
from fuse_ckpt.staging.worktree import Scan, WorkTree
from tests.staging.trainer import key_of

UNIT = Unit("checkpoint-1", Shape.DIRECTORY)


@pytest.fixture
def tree(root_fd: int) -> WorkTree:
    return WorkTree(root_fd, UnitRules())


@pytest.fixture
def work(tree: WorkTree, tmp_path: Path) -> Path:
    work = tmp_path / "store" / "jobs" / "job" / "work"
    (work / "checkpoint-1" / "sub").mkdir(parents=True)
    (work / "checkpoint-1" / "a").write_bytes(b"a")
    (work / "checkpoint-1" / "sub" / "b").write_bytes(b"bb")
    (work / "checkpoint-1" / "link").symlink_to("a")
    (work / "latest").write_bytes(b"checkpoint-1")
    return work


@pytest.fixture
def pending(tmp_path: Path) -> Path:
    directory = tmp_path / "pending"
    directory.mkdir()
    return directory


def seal(tree: WorkTree, pending: Path, sealed_ns: int = 2, scan: Scan | None = None) -> Sealed:
    return journal.seal(tree, pending, scan or tree.scan(UNIT), Journal(UNIT, 1, sealed_ns, ()))


def test_a_seal_links_every_file_and_copies_none(tree: WorkTree, work: Path, pending: Path) -> None:
    sealed = seal(tree, pending)
    linked = {one.path: one for one in sealed.journal.files}
    assert sorted(linked) == [
        "checkpoint-1/a", "checkpoint-1/link", "checkpoint-1/sub", "checkpoint-1/sub/b", "latest",
    ]  # fmt: skip
    assert [path for path, one in linked.items() if one.companion] == ["latest"]
    for path, one in linked.items():
        assert bool(one.link) == (one.kind is Kind.FILE)
        if one.link:
            assert key_of(sealed.source(one)) == key_of(work / path) == one.key
    assert linked["checkpoint-1/link"].target == "a"
    assert (linked["checkpoint-1/sub/b"].size, linked["checkpoint-1/a"].mode) == (2, 0o644)


def test_another_process_reads_the_same_journal(tree: WorkTree, work: Path, pending: Path) -> None:
    sealed = seal(tree, pending)
    assert journal.load_all(pending, clean=True) == [sealed]
    assert journal.why_stuck(sealed) is None


def test_names_that_are_no_utf8_survive_the_journal(tree: WorkTree, work: Path, pending: Path) -> None:
    name = os.fsencode(work) + b"/checkpoint-1/caf\xe9\n"
    os.close(os.open(name, os.O_CREAT))
    os.symlink(b"\xff", os.fsencode(work) + b"/checkpoint-1/points")
    sealed = seal(tree, pending)
    (loaded,) = journal.load_all(pending, clean=True)
    assert loaded == sealed
    linked = {os.fsencode(one.path): one for one in loaded.journal.files}
    assert linked[b"checkpoint-1/caf\xe9\n"].key == key_of(Path(os.fsdecode(name)))
    assert os.fsencode(linked[b"checkpoint-1/points"].target) == b"\xff"


def test_drafts_come_back_in_the_order_of_their_seals(tree: WorkTree, work: Path, pending: Path) -> None:
    for sealed_ns in (30, 10, 20):
        seal(tree, pending, sealed_ns)
    assert [one.journal.sealed_ns for one in journal.load_all(pending, clean=False)] == [10, 20, 30]


def test_a_directory_without_a_journal_is_a_seal_that_never_happened(pending: Path) -> None:
    (pending / "torn").mkdir()
    (pending / "torn" / "m0").write_bytes(b"data")
    assert journal.load_all(pending, clean=False) == []
    assert (pending / "torn").exists()
    assert journal.load_all(pending, clean=True) == []
    assert not (pending / "torn").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"unit": 1}', b"\xff"])
def test_a_journal_that_cannot_be_read_is_kept_and_harms_no_other(
    tree: WorkTree, work: Path, pending: Path, content: bytes
) -> None:
    sealed = seal(tree, pending)
    (pending / "torn").mkdir()
    (pending / "torn" / "m0").write_bytes(b"the only copy")
    (pending / "torn" / "journal.json").write_bytes(content)
    assert journal.load_all(pending, clean=True) == [sealed]
    assert (pending / "torn" / "m0").exists()


def test_a_file_that_was_replaced_since_the_scan_is_not_sealed(tree: WorkTree, work: Path, pending: Path) -> None:
    scan = tree.scan(UNIT)
    (work / "checkpoint-1" / "new").write_bytes(b"other")
    (work / "checkpoint-1" / "new").rename(work / "checkpoint-1" / "a")
    with pytest.raises(OSError, match="changed while it was sealed"):
        seal(tree, pending, scan=scan)
    assert os.listdir(pending) == []


def test_a_seal_that_fails_leaves_nothing_behind(tree: WorkTree, work: Path, pending: Path) -> None:
    def full(point: str) -> None:
        raise OSError(28, "No space left on device")

    with faults.install(full), pytest.raises(OSError, match="No space"):
        seal(tree, pending)
    assert os.listdir(pending) == []
    assert (work / "checkpoint-1" / "a").stat().st_nlink == 1


def test_discard_removes_links_and_journal(tree: WorkTree, work: Path, pending: Path) -> None:
    sealed = seal(tree, pending)
    sealed.note_error("caf\udce9: no space")
    assert journal.why_stuck(sealed) is not None
    sealed.discard()
    assert os.listdir(pending) == []
    assert (work / "checkpoint-1" / "a").stat().st_nlink == 1


def test_a_member_loses_the_units_prefix_and_a_companion_keeps_its_path(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    linked = Linked("checkpoint-1/x", Kind.FILE, 0o600, 5, 7, key_of(tmp_path / "x"), link="m0")
    assert linked.entry("checkpoint-1", "d") == Entry("x", Kind.FILE, 0o600, 5, 7, "d")
    assert linked.entry("", "d").path == "checkpoint-1/x"
    beside = Linked("a/latest", Kind.FILE, 0o600, 5, 7, linked.key, companion=True)
    assert beside.entry("a", "d").path == "a/latest"
