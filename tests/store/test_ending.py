"""Ending jobs: what goes with one, and what its working tree gives up."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuse_ckpt import faults
from fuse_ckpt.errors import CheckpointLeased, CheckpointPinned, JobMounted, UnknownJob
from fuse_ckpt.model import Checkpoint, State
from fuse_ckpt.store import Store

Save = Callable[..., Checkpoint]


class Crash(BaseException):
    """No `except Exception` may tidy up after it, as none would after a kill."""


def put(store: Store, path: str, data: bytes = b"data") -> Path:
    file = store.layout.work("job") / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def saved_in_place(store: Store, save: Save, name: str, data: bytes, **more: object) -> Checkpoint:
    """A flat checkpoint whose file lies in the working tree under its own name, with the times of the manifest."""
    saved = save(store, name, {name: data}, **more)
    file = store.layout.work("job") / name
    os.rename(store.layout.work("job") / f"{name}-{name}", file)
    os.utime(file, ns=(1, 1))
    return saved


def kept(store: Store) -> dict[str, bool]:
    return {file.path: file.kept for file in store.work_files("job")}


# deleting a job


def test_a_deleted_job_is_gone_and_its_checkpoints_are_in_the_trash(store: Store, save: Save) -> None:
    mine = [save(store, "x", {"a": b"1"}), save(store, "y", {"a": b"2"}, failure="torn")]
    other = save(store, "x", {"a": b"1"}, job="job2")
    store.begin_run("job", ["true"], 1)
    store.delete_job("job")
    with pytest.raises(UnknownJob):
        store.job("job")
    assert [one.name for one in store.jobs()] == ["job2"]
    assert store.checkpoints() == [other]
    assert [one.id for one in store.trash()] == [one.id for one in mine]
    assert not store.layout.job("job").exists()
    assert store.runs("job") == []
    assert os.listdir(store.layout.tmp) == []
    assert not store.layout.lock("job-job").exists()
    assert store.verify() == []


def test_a_restored_checkpoint_brings_its_job_back(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    store.delete_job("job")
    store.restore(one.id)
    assert [job.name for job in store.jobs()] == ["job"]
    assert store.latest("job") is None
    assert store.checkpoints("job") == [one]
    assert os.listdir(store.layout.work("job")) == []


def test_a_job_of_the_same_name_begins_afresh(store: Store, save: Save) -> None:
    save(store, "x", {"a": b"1"})
    put(store, "log.txt")
    store.delete_job("job")
    store.ensure_job("job", 2)
    assert store.job("job").created_ns == 2
    assert store.work_files("job") == []


@pytest.mark.parametrize("reason", [CheckpointLeased, CheckpointPinned, JobMounted])
def test_a_job_in_use_is_left_as_it_is(store: Store, save: Save, reason: type[Exception]) -> None:
    one, two = save(store, "x", {"a": b"1"}), save(store, "y", {"a": b"2"})
    put(store, "log.txt")
    with ExitStack() as held:
        if reason is CheckpointPinned:
            store.pin(two.id)
        else:
            held.enter_context(store.lease(two.id) if reason is CheckpointLeased else store.lock_job("job"))
        with pytest.raises(reason):
            store.delete_job("job")
    assert [left.id for left in store.checkpoints()] == [one.id, two.id]
    assert (store.layout.work("job") / "log.txt").exists()
    assert store.job("job").name == "job"
    store.lock_job("job").close()


@pytest.mark.parametrize("point", ["delete:manifest", "ending:rename", "ending:record", "ending:remove"])
def test_a_crash_while_a_job_is_deleted_is_made_good_by_doing_it_again(root: Path, save: Save, point: str) -> None:
    def crash(reached: str) -> None:
        if reached == point:
            raise Crash

    with Store.open(root) as store:
        save(store, "x", {"a": b"1"})
        with faults.install(crash), pytest.raises(Crash):
            store.delete_job("job")
    with Store.open(root) as store:
        store.recover()
        assert store.checkpoints() == []
        if point != "ending:remove":
            assert store.work_files("job") is not None
            store.delete_job("job")
        assert store.jobs() == []
        assert os.listdir(store.layout.jobs) == os.listdir(store.layout.tmp) == []
        assert len(store.trash()) == 1
        assert store.verify() == []


def test_an_unknown_job_cannot_be_deleted(store: Store) -> None:
    with pytest.raises(UnknownJob):
        store.delete_job("none")
    with pytest.raises(UnknownJob):
        store.work_files("none")


# the working tree


def test_what_a_checkpoint_holds_is_told_from_what_none_does(store: Store, save: Save) -> None:
    saved_in_place(store, save, "a.pt", b"a")
    deleted = saved_in_place(store, save, "b.pt", b"b")
    collected = saved_in_place(store, save, "c.pt", b"c")
    changed = saved_in_place(store, save, "d.pt", b"d")
    copy = saved_in_place(store, save, "e.pt", b"e")
    store.delete([deleted.id, collected.id, changed.id])
    with store.collecting("a test"):
        store.collect([collected.id, changed.id])
        store.clear_garbage()
    put(store, "d.pt", b"written in place")
    file = store.layout.work("job") / copy.name
    file.unlink()
    file.write_bytes(b"e")  # equal bytes, an inode of its own
    put(store, "logs/train.log")
    put(store, "e2.pt", b"e")
    assert kept(store) == {
        "a.pt": True, "b.pt": True, "c.pt": True, "d.pt": False, "e.pt": True, "e2.pt": False, "logs/train.log": False,
    }  # fmt: skip


def test_a_released_tree_keeps_what_no_checkpoint_holds(store: Store, save: Save) -> None:
    one = saved_in_place(store, save, "a.pt", b"a")
    log = put(store, "logs/train.log")
    put(store, "step_1/empty/x", b"x").unlink()
    os.symlink("/etc", store.layout.work("job") / "elsewhere")
    with store.lock_job("job"):
        store.release_work("job", [file for file in store.work_files("job") if file.kept])
    assert sorted(os.listdir(store.layout.work("job"))) == ["elsewhere", "logs"]
    assert log.read_bytes() == b"data"
    assert store.verify() == []
    store.delete([one.id])
    with store.collecting("a test"):
        store.collect([one.id])
        assert store.clear_garbage().free == 4096


def test_no_symlink_is_followed(store: Store, save: Save, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"mine")
    save(store, "x", {"a": b"1"})
    os.symlink(outside, store.layout.work("job") / "away")
    assert {file.path for file in store.work_files("job")} == {"x-a", "away"}
    with store.lock_job("job"):
        store.release_work("job", store.work_files("job"))
    assert (outside / "file").read_bytes() == b"mine"
    assert os.listdir(store.layout.work("job")) == []


def test_names_that_are_no_text_are_told_and_released(store: Store, save: Save) -> None:
    save(store, "x", {"a": b"1"})
    with open(os.fsencode(store.layout.work("job")) + b"/\xff\n-x.log", "wb"):
        pass
    assert "\udcff\n-x.log" in kept(store)
    with store.lock_job("job"):
        store.release_work("job", store.work_files("job"))
    assert os.listdir(store.layout.work("job")) == []


# the rules of a job


def test_the_rules_of_a_job_are_recorded_and_taken_back(store: Store) -> None:
    store.ensure_job("job", 1)
    store.set_rules("job", "keep-last=3", 0, 1 << 30)
    store.set_rules("job")
    job = store.set_rules("job", trash_ttl_ns=5)
    assert (job.retain, job.trash_ttl_ns, job.min_free) == ("keep-last=3", 5, 1 << 30)
    assert store.job("job") == job
    job = store.set_rules("job", "none", min_free=0)
    assert (job.retain, job.trash_ttl_ns, job.min_free) == (None, 5, None)
    assert store.ensure_job("job", 9) == job


def test_the_trash_of_each_job_has_its_own_time(store: Store, save: Save) -> None:
    quick, slow = save(store, "x", {"a": b"1"}, job="quick"), save(store, "x", {"a": b"2"}, job="slow")
    store.set_rules("quick", trash_ttl_ns=0)
    store.delete([quick.id, slow.id])
    now_ns = store.trash()[0].deleted_ns or 0
    assert [one.id for one in store.expired(now_ns)] == [quick.id]
    assert [one.id for one in store.expired(now_ns, ttl_ns=0)] == [quick.id, slow.id]
    assert [one.id for one in store.expired(now_ns + 8 * 86_400 * 10**9)] == [quick.id, slow.id]
    assert [one.id for one in store.expired(now_ns, "slow")] == []


def test_counts_are_by_job_and_state(store: Store, save: Save) -> None:
    save(store, "x", {"a": b"12345"}, job="one")
    save(store, "x", {"a": b"1"}, job="one", failure="torn")
    gone = save(store, "x", {"a": b"12"}, job="two")
    store.delete([gone.id])
    tallies = store.tallies()
    assert (tallies["one"].available, tallies["one"].failed, tallies["one"].bytes) == (1, 1, 6)
    assert (tallies["two"].deleted, tallies["two"].bytes, tallies["two"].trash_bytes) == (1, 0, 2)
    assert {one.state for one in store.checkpoints(states={State.DELETED})} == {State.DELETED}
