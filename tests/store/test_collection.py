"""Collecting: what goes, what stays, and what a kill at each step leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import lmdb
import pytest

from fuse_ckpt import faults
from fuse_ckpt.errors import Collecting, CorruptRecord, UnknownCheckpoint
from fuse_ckpt.model import SCAN_RULES, Checkpoint, InodeKey, Scan, State
from fuse_ckpt.store import Layout, Store, parse_policy
from fuse_ckpt.store.accounts import Space
from fuse_ckpt.store.collection import Cleared, Collected

Save = Callable[..., Checkpoint]

BLOCK = 4096  # bytes that a small file takes
POINTS = ["collect:record", "collect:manifest", "collect:blob", "collect:inodes"]


class Crash(BaseException):
    """No `except Exception` may tidy up after it, as none would after a kill."""


def crash_at(point: str, count: int = 1) -> Callable[[str], None]:
    left = count

    def hook(reached: str) -> None:
        nonlocal left
        left -= reached == point
        if left == 0:
            raise Crash(point)

    return hook


def gc(store: Store, *checkpoints: Checkpoint, patience: float = 0.0) -> tuple[Collected, Cleared]:
    with store.collecting("a test"):
        return store.collect([one.id for one in checkpoints]), store.clear_garbage(patience)


def blobs(store: Store) -> set[bytes]:
    return {path.read_bytes() for path in store.layout.blobs.glob("*/*")}


def rows(root: Path, table: str) -> dict[bytes, bytes]:
    with lmdb.open(str(Layout(root).index), max_dbs=16, lock=False, readonly=True) as env:
        database = env.open_db(table.encode(), create=False)
        with env.begin(db=database) as transaction:
            return dict(transaction.cursor())


def rotated(store: Store, save: Save, name: str, files: dict[str, bytes]) -> Checkpoint:
    """A checkpoint whose files training has removed already."""
    saved = save(store, name, files)
    for path in files:
        (store.layout.work("job") / f"{name}-{path}").unlink()
    return saved


# what goes and what stays


def test_what_was_deleted_goes_and_nothing_else(root: Path, store: Store, save: Save) -> None:
    gone = rotated(store, save, "x", {"own": b"own", "shared": b"shared", "twice": b"own"})
    kept = save(store, "y", {"shared": b"shared", "other": b"other"})
    store.delete([gone.id])
    collected, cleared = gc(store, gone, kept)
    assert [one.id for one in collected.checkpoints] == [gone.id]
    assert cleared == Cleared(blobs=1, free=BLOCK)
    assert store.checkpoints() == [kept]
    assert blobs(store) == {b"shared", b"other"}
    assert os.listdir(store.layout.manifests) == [f"{kept.id}.json"]
    assert store.totals().blobs == 2
    assert store.totals().bytes == len(b"sharedother")
    with pytest.raises(UnknownCheckpoint):
        store.restore(gone.id)
    assert store.verify() == store.problems == []
    store.close()
    assert rows(root, "garbage") == rows(root, "left") == {}
    assert {len(rows(root, table)) for table in ("checkpoints", "manifests", "by_job")} == {1}
    assert len(rows(root, "inodes")) == len(rows(root, "blobs")) == 2


def test_what_a_scan_found_goes_with_the_blob(store: Store, save: Save) -> None:
    gone, kept = rotated(store, save, "x", {"a": b"gone"}), save(store, "y", {"a": b"kept"})
    [digest] = {entry.digest for entry in store.manifest(gone.id).entries}
    [other] = {entry.digest for entry in store.manifest(kept.id).entries}
    store.keep_scans({digest: Scan(SCAN_RULES), other: Scan(SCAN_RULES)})
    store.delete([gone.id])
    gc(store, gone)
    assert store.scans([digest, other]) == {other: Scan(SCAN_RULES)}


def test_shared_bytes_go_with_the_last_that_names_them(store: Store, save: Save) -> None:
    saved = [rotated(store, save, f"s_{n}", {"a": b"same"}) for n in range(3)]
    for left in (2, 1, 0):
        one = saved.pop()
        store.delete([one.id])
        gc(store, one)
        assert blobs(store) == ({b"same"} if left else set())
    assert store.totals().blobs == store.totals().bytes == 0


def test_the_number_of_a_collected_one_is_not_used_again(root: Path, store: Store, save: Save) -> None:
    first, second = save(store, "x", {"a": b"1"}), save(store, "x", {"a": b"2"})
    store.delete([first.id, second.id])
    gc(store, first, second)
    with pytest.raises(UnknownCheckpoint):
        store.resolve("job/x@2")
    third = save(store, "x", {"a": b"3"})
    assert third.ordinal == 3
    assert store.resolve("job/x").id == third.id
    store.close()
    assert len(rows(root, "by_name")) == 1


def test_a_restored_one_is_not_collected(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    store.delete([one.id])

    def restore(point: str) -> None:
        if point == "collect:record":
            store.restore(one.id)

    with faults.install(restore):
        collected, _ = gc(store, one)
    assert collected.checkpoints == []
    assert [left.id for left in store.checkpoints()] == [one.id]
    assert store.layout.manifest(one.id).exists()
    assert store.verify() == []


@pytest.mark.parametrize("way", ["tag", "pin", "lease"])
def test_what_somebody_holds_since_the_plan_was_made_stays(store: Store, save: Save, way: str) -> None:
    saved = [save(store, f"step_{n}", {"a": bytes([n])}) for n in range(4)]
    plan = store.plan(time.time_ns(), policy=parse_policy("keep-last=1"), ttl_ns=0)
    held = saved[1].id
    with contextlib.ExitStack() as stack:
        if way == "lease":
            stack.enter_context(store.lease(held, "a run"))
        else:
            _ = store.tag(held, "precious") if way == "tag" else store.pin(held)
        done = store.tidy(plan, "the test")
    assert [one.id for one in done.collected] == [saved[0].id, saved[2].id]
    assert list(done.kept) == [held]
    assert store.checkpoint(held).state is State.AVAILABLE
    assert (store.tagged("precious") is not None) is (way == "tag")


def test_collecting_twice_is_collecting_once(store: Store, save: Save) -> None:
    one = rotated(store, save, "x", {"a": b"1"})
    store.delete([one.id])
    gc(store, one, one)
    assert gc(store, one) == (Collected([], {}), Cleared())


def test_two_at_once_the_second_is_told_who_the_first_is(store: Store) -> None:
    with store.collecting("gc, process 7"), pytest.raises(Collecting, match=r"gc, process 7 is collecting: try again"):
        gc(store)
    gc(store)


# working trees


def test_a_file_of_the_working_tree_keeps_its_bytes_and_is_sealed_no_more(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"data"})
    file = store.layout.work("job") / "x-a"
    status = file.stat()
    key = InodeKey(status.st_dev, status.st_ino)
    assert store.known_digest(key) is not None
    store.delete([one.id])
    assert store.space([one.id]) == Space(held=BLOCK)
    _, cleared = gc(store, one)
    assert cleared == Cleared(blobs=1, held=BLOCK)
    assert file.read_bytes() == b"data"
    assert file.stat().st_nlink == 1
    assert store.known_digest(key) is None
    file.write_bytes(b"written in place")
    again = save(store, "x", {"a": b"data"})
    assert store.verify() == []
    assert again.ordinal == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_versions_of_a_name_left_is_known_in_whatever_order_they_were_collected(
    store: Store, save: Save, order: tuple[int, int]
) -> None:
    """Else the next mount takes the files of the newest one for new: what was deleted would come back."""
    work = store.layout.work("job")
    both = [save(store, "a", {"config": b"{}", "model": content}) for content in (b"one", b"other")]
    for name, data in (("config", b"{}"), ("model", b"other")):
        (work / name).write_bytes(data)
        os.utime(work / name, ns=(1, 1))
    with store.collecting("a test"):
        for at in order:
            store.delete([both[at].id])
            store.collect([both[at].id])
    assert store.was_collected("job", "a", [("config", 2, 1), ("model", 5, 1)])
    assert not store.was_collected("job", "a", [("config", 2, 1), ("model", 3, 1)])


def test_how_often_blobs_went_is_counted(store: Store, save: Save) -> None:
    one = rotated(store, save, "x", {"a": b"1"})
    before = store.totals().collections
    store.delete([one.id])
    assert store.totals().collections == before
    gc(store, one)
    assert store.totals().collections > before


# mounts


def test_what_a_mount_shows_is_left_until_it_does_no_more(store: Store, save: Save) -> None:
    seen, unseen = (rotated(store, save, name, {"a": name.encode()}) for name in ("x", "y"))
    with store.uses("a mount of job") as uses:
        uses.hold(seen.id)
        uses.hold(seen.id)
        uses.hold(unseen.id)
        uses.release(unseen.id)
        store.delete([seen.id, unseen.id])
        collected, _ = gc(store, seen, unseen)
        assert [one.id for one in collected.checkpoints] == [unseen.id]
        assert collected.in_use == {seen.id: "a mount of job"}
        uses.release(seen.id)
        assert list(uses.held) == [seen.id]
        with pytest.raises(UnknownCheckpoint):
            uses.hold(unseen.id)
        uses.release(seen.id)
        assert list(uses.held) == []
        assert [one.id for one in gc(store, seen)[0].checkpoints] == [seen.id]
    assert blobs(store) == set()


def test_a_deleted_checkpoint_that_is_shown_can_be_shown_in_more_places(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    with store.uses("a mount of job") as uses:
        uses.hold(one.id)
        store.delete([one.id])
        uses.hold(one.id)
        with store.uses("another") as others, pytest.raises(UnknownCheckpoint):
            others.hold(one.id)


def test_what_a_killed_mount_showed_holds_nothing_back(store: Store, save: Save) -> None:
    one = rotated(store, save, "x", {"a": b"1"})
    dead = store.layout.lock("use-0123")
    dead.write_text(f"a mount of job\n{one.id}\n")
    store.delete([one.id])
    assert gc(store, one)[0].in_use == {}
    assert not dead.exists()


def test_many_shown_checkpoints_take_one_descriptor(store: Store, save: Save) -> None:
    ids = [save(store, f"s_{n}", {"a": b"1"}).id for n in range(12)]
    with store.uses("a mount") as uses:
        before = len(os.listdir("/proc/self/fd"))
        for one in ids:
            uses.hold(one)
        assert len(os.listdir("/proc/self/fd")) == before
        for one in ids[::2]:
            uses.release(one)
        for one in ids[1::4]:
            uses.hold(one)
        assert set(uses.held) == set(ids[1::2])


# beside commits


@contextmanager
def in_a_thread(work: Callable[[], object]) -> Iterator[threading.Thread]:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # told below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield thread
    thread.join(20)
    assert not thread.is_alive()
    assert failed == []


@pytest.mark.parametrize("point", ["adopt:fsync", "publish:manifest", "publish:txn", "publish:done"])
def test_a_blob_that_a_commit_relies_on_is_never_taken(store: Store, save: Save, point: str) -> None:
    """`gc` deletes and collects the only checkpoint of these bytes while a commit of the same bytes is at each step."""
    old = rotated(store, save, "old", {"a": b"same"})
    at_the_point, go_on = threading.Event(), threading.Event()

    def pause(reached: str) -> None:
        if reached == point and threading.current_thread() is not threading.main_thread():
            at_the_point.set()
            assert go_on.wait(20)

    with faults.install(pause), in_a_thread(lambda: save(store, "new", {"a": b"same"})):
        assert at_the_point.wait(20)
        store.delete([old.id])
        collected, cleared = gc(store, old)
        assert [one.id for one in collected.checkpoints] == [old.id]
        assert (cleared.blobs, cleared.waiting) == (0, 0 if point == "publish:done" else len(b"same"))
        go_on.set()
    assert gc(store)[1] == Cleared()
    [new] = store.checkpoints()
    assert new.name == "new"
    assert store.verify() == []
    assert blobs(store) == {b"same"}


def test_gc_waits_for_a_commit_as_long_as_it_is_patient(store: Store, save: Save) -> None:
    old = rotated(store, save, "old", {"a": b"1"})
    store.delete([old.id])
    committing, done = threading.Event(), threading.Event()

    def commit() -> None:
        with store.committing():
            committing.set()
            assert done.wait(20)

    with in_a_thread(commit):
        assert committing.wait(20)
        assert gc(store, old)[1].waiting == 1
        threading.Timer(0.05, done.set).start()
        assert gc(store, patience=20.0)[1] == Cleared(blobs=1, free=BLOCK)


def test_bytes_that_come_again_between_two_steps_stay(store: Store, save: Save) -> None:
    old = rotated(store, save, "old", {"a": b"same"})
    store.delete([old.id])
    with store.collecting("a test"):
        store.collect([old.id])
        new = save(store, "new", {"a": b"same"})
        assert store.clear_garbage() == Cleared()
    assert store.checkpoints() == [new]
    assert store.verify() == []


# crashes


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_crash_of_a_collection_leaves_what_the_next_one_removes(
    root: Path, save: Save, monkeypatch: pytest.MonkeyPatch, point: str, count: int
) -> None:
    monkeypatch.setattr("fuse_ckpt.store.collection.FEW", 2)
    with Store.open(root) as store:
        gone = [rotated(store, save, f"s_{n}", {"own": b"own %d" % n, "shared": b"shared"}) for n in range(3)]
        sealed = save(store, "t", {"a": b"in the working tree"})
        kept = save(store, "kept", {"shared": b"shared", "a": b"kept"})
        doomed = [*gone, sealed]
        store.delete([one.id for one in doomed])
        with faults.install(crash_at(point, count)), pytest.raises(Crash):
            gc(store, *doomed)
    with Store.open(root) as store:
        assert store.checkpoints() == [kept]
        assert store.verify() == []
        assert b"shared" in blobs(store)
        store.recover()
        assert store.problems == []
        gc(store, *store.trash())
        assert store.checkpoints() == [kept]
        assert blobs(store) == {b"shared", b"kept"}
        assert os.listdir(store.layout.manifests) == [f"{kept.id}.json"]
        assert (store.totals().blobs, store.totals().bytes) == (2, len(b"sharedkept"))
        assert store.verify() == store.problems == []
    assert rows(root, "garbage") == {}
    assert len(rows(root, "inodes")) == 2  # of the kept one: the shared bytes were the first one's inode


def test_every_named_point_is_in_the_matrix(store: Store, save: Save) -> None:
    reached: list[str] = []
    one = rotated(store, save, "x", {"a": b"1"})
    store.delete([one.id])
    with faults.install(reached.append):
        gc(store, one)
    assert reached == POINTS


def test_collecting_all_there_is_does_not_look_like_a_lost_index(root: Path, save: Save) -> None:
    with Store.open(root) as store:
        doomed = [rotated(store, save, f"s_{n}", {"a": b"%d" % n}) for n in range(9)]
        store.delete([one.id for one in doomed])
        with faults.install(crash_at("collect:manifest")), pytest.raises(Crash):
            gc(store, *doomed)
    with Store.open(root) as store:
        assert len(os.listdir(store.layout.manifests)) == 9
        store.recover()
        assert store.problems == []
        assert os.listdir(store.layout.manifests) == []
        gc(store)
        assert blobs(store) == set()


# counts that are wrong


def test_a_count_that_is_too_low_takes_nothing_away(root: Path, save: Save) -> None:
    with Store.open(root) as store:
        one, two, three = (save(store, f"s_{n}", {"a": b"same"}) for n in range(3))
    flip(root, b"blobs")
    with Store.open(root) as store:
        four = save(store, "s_4", {"a": b"same"})  # counts from one again
        store.delete([four.id])
        gc(store, four)
        assert store.checkpoints() == [one, two, three]
        assert store.verify() == []
        for left in (one, two, three):
            assert blobs(store) == {b"same"}
            store.delete([left.id])
            gc(store, left)
        assert blobs(store) == set()
        assert store.totals().blobs == 0


@pytest.mark.parametrize("has_file", [True, False])
def test_a_manifest_that_cannot_be_read_keeps_its_blobs(root: Path, save: Save, has_file: bool) -> None:
    with Store.open(root) as store:
        one = save(store, "x", {"a": b"same"})
        file = store.layout.manifest(one.id)
        if not has_file:
            file.unlink()
    flip(root, b"manifests")
    flip(root, b"blobs")
    with Store.open(root) as store:
        two = save(store, "y", {"a": b"same"})
        store.delete([two.id])
        if has_file:
            gc(store, two)
        else:
            with pytest.raises(CorruptRecord, match=f"Nothing is collected: .* {one.id} "):
                gc(store, two)
        assert blobs(store) == {b"same"}


def flip(root: Path, table: bytes) -> None:
    """Flip a bit of each record of a table of a closed store."""
    with lmdb.open(str(Layout(root).index), max_dbs=16, lock=False, map_size=1 << 24) as env:
        database = env.open_db(table)
        with env.begin(write=True, db=database) as transaction:
            for found, value in list(transaction.cursor()):
                transaction.put(found, value[:-1] + bytes([value[-1] ^ 1]))


# space


def test_what_would_come_free_is_told_before(store: Store, save: Save) -> None:
    own = rotated(store, save, "x", {"a": b"1" * 10_000, "b": b"1" * 10_000, "s": b"shared"})
    held = save(store, "y", {"a": b"2", "s": b"shared"})
    assert store.space([own.id]) == Space(free=3 * BLOCK, shared=BLOCK)
    assert store.space([own.id, held.id]) == Space(free=4 * BLOCK, held=BLOCK)
    store.delete([held.id])
    assert store.space([own.id]) == Space(free=4 * BLOCK)  # the trash does not count
    assert store.space([]) == Space()


def test_what_each_would_free_is_told_in_one_go(store: Store, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.store.accounts._AT_ONCE", 7)
    saved = [save(store, f"s{n}", {"a": bytes([n // 2]), "b": b"%d" % n, "c": b"all"}) for n in range(20)]
    shutil.rmtree(store.layout.work("job"))  # which holds what comes free
    store.delete([one.id for one in saved[::3]])
    asked = [one.id for one in saved]
    assert store.frees(asked) == {one: store.space([one]).free for one in asked}
    assert set(store.frees(asked).values()) == {BLOCK, 2 * BLOCK}
    read = mock.Mock(side_effect=store.index.read)
    monkeypatch.setattr(store.index, "read", read)
    store.frees(asked)
    assert read.call_count <= 5  # the trash, what it names, and the asked ones by sevens


def test_space_is_freed_from_the_oldest_on_and_never_in_vain(store: Store, save: Save) -> None:
    held = save(store, "x_0", {"a": b"in the working tree"})
    own = [rotated(store, save, f"x_{n}", {"a": b"%d" % n}) for n in range(1, 4)]
    everything = [held, *own]
    assert store.to_free(BLOCK + 1, everything) == own[:2]
    assert store.to_free(1 << 40, everything) == own
    assert store.to_free(0, everything) == []
    assert store.to_free(1 << 40, []) == []
