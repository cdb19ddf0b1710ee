"""The crash matrix of the store: wherever it dies, bytes come before records, and recover leaves nothing over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from fuse_ckpt import faults
from fuse_ckpt.model import Checkpoint
from fuse_ckpt.store import Store, locks

Save = Callable[..., Checkpoint]

POINTS = [
    ("adopt:fsync", 1),
    ("adopt:fsync", 2),
    ("adopt:link", 1),
    ("adopt:dirsync", 1),
    ("adopt:link", 2),
    ("adopt:replace", 1),
    ("adopt:dirsync", 2),
    ("publish:manifest", 1),
    ("publish:txn", 1),
    ("publish:done", 1),
]


class Crash(BaseException):
    """No `except Exception` may tidy up after it, as none would after a kill."""


def crash_at(point: str, count: int) -> Callable[[str], None]:
    left = count

    def hook(reached: str) -> None:
        nonlocal left
        left -= reached == point
        if left == 0:
            raise Crash(point)

    return hook


def blobs(store: Store) -> set[str]:
    return {path.name for path in store.layout.blobs.glob("*/*")}


def named(store: Store) -> set[str]:
    return {entry.digest for one in store.checkpoints() for entry in store.manifest(one.id).entries}


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_a_crash_of_a_commit_leaves_the_checkpoint_whole_or_not_at_all(
    root: Path, save: Save, point: str, count: int
) -> None:
    files = {"new": b"new", "torn": b"whole"}
    with Store.open(root) as store:
        before = save(store, "x", {"a": b"before"})
        left_over = store.blob_path(blake3(b"whole").hexdigest())
        left_over.parent.mkdir(exist_ok=True)
        left_over.write_bytes(b"wh\0\0\0")
        with faults.install(crash_at(point, count)), pytest.raises(Crash):
            save(store, "x", files)
    with Store.open(root) as store:
        assert named(store) <= blobs(store)
        assert store.verify() == []
        store.recover()
        listed = store.checkpoints()
        assert listed[0] == before
        assert len(listed) == (2 if point == "publish:done" else 1)
        assert blobs(store) == named(store)
        assert {path.stem for path in store.layout.manifests.iterdir()} == {one.id for one in listed}
        assert os.listdir(store.layout.tmp) == []
        assert save(store, "x", files).ordinal == len(listed) + 1
        assert store.verify() == store.problems == []


def test_a_crash_of_a_delete_leaves_it_deleted(root: Path, save: Save) -> None:
    with Store.open(root) as store:
        checkpoint = save(store, "x", {"a": b"data"})
        with faults.install(crash_at("delete:manifest", 1)), pytest.raises(Crash):
            store.delete([checkpoint.id])
    with Store.open(root) as store:
        assert store.checkpoints() == []


def test_every_named_point_is_in_the_matrix(store: Store, save: Save) -> None:
    reached: list[str] = []
    with faults.install(reached.append):
        store.layout.blob(blake3(b"b").hexdigest()).parent.mkdir()
        store.blob_path(blake3(b"b").hexdigest()).write_bytes(b"left over")
        store.delete([save(store, "x", {"a": b"a", "b": b"b"}).id])
    assert set(reached) == {point for point, _ in POINTS} | {"delete:manifest"}


def test_recover_removes_nothing_of_a_commit_under_way(store: Store) -> None:
    half_made = store.layout.tmp / "copy"
    half_made.write_bytes(b"x")
    with store.committing():
        source = store.layout.tmp / "a"
        source.write_bytes(b"data")
        adopted = store.adopt(source)
        store.recover()
        assert blobs(store) == {adopted.digest}
        assert half_made.exists()
    store.recover()
    assert blobs(store) == set()
    assert os.listdir(store.layout.tmp) == []


def test_old_things_in_tmp_go_even_while_somebody_commits(store: Store) -> None:
    (store.layout.tmp / "old").mkdir()
    (store.layout.tmp / "old" / "file").write_bytes(b"x")
    os.utime(store.layout.tmp / "old", (1, 1))
    with store.committing():
        store.recover()
    assert os.listdir(store.layout.tmp) == []


def test_a_lost_index_is_noticed_and_costs_no_checkpoint(root: Path, save: Save) -> None:
    with Store.open(root) as store:
        for n in range(3):
            save(store, "x", {"a": b"%d" % n})
    (root / "index" / "data.mdb").unlink()
    with Store.open(root) as store:
        store.recover()
        assert len(blobs(store)) == len(os.listdir(store.layout.manifests)) == 3
        assert "3 manifests have no record" in store.problems[0]


def test_recover_gives_its_locks_back(store: Store) -> None:
    store.recover()
    assert not locks.is_held(store.layout.lock("gc"))
    assert not locks.is_held(store.layout.lock("publish"))


def test_a_hook_is_gone_after_its_block() -> None:
    with faults.install(crash_at("x", 1)), pytest.raises(Crash):
        faults.fault("x")
    faults.fault("x")
