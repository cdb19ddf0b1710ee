"""After a crash anywhere, the next mount commits or sets aside what the last one left: each save once."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from fuse_ckpt import faults
from fuse_ckpt.model import State
from fuse_ckpt.staging import Area, Committer, Settings, recover
from fuse_ckpt.store import Store
from tests.staging.trainer import JOB, Trainer, key_of, torch_zip

POINTS = [
    ("seal:linked", 1),
    ("seal:done", 1),
    ("seal:done", 2),
    ("adopt:fsync", 1),
    ("adopt:fsync", 2),
    ("adopt:link", 1),
    ("adopt:link", 2),
    ("adopt:dirsync", 1),
    ("adopt:dirsync", 2),
    ("publish:manifest", 1),
    ("publish:manifest", 2),
    ("publish:txn", 1),
    ("publish:txn", 2),
    ("publish:done", 1),
    ("publish:done", 2),
]
SAVED = {
    "checkpoint-1@1": {"weights": b"one", "trainer_state.json": b"{}"},
    "checkpoint-2@1": {"weights": b"two", "trainer_state.json": b"{}"},
    "a.pt@1": {"a.pt": torch_zip(b"first")},
    "a.pt@2": {"a.pt": torch_zip(b"second")},
}

PLAIN = Settings()
Story = Callable[[Trainer, Committer], Awaitable[None]]


class Crash(BaseException):
    """No `except Exception` may tidy up after it, as none would after a kill."""


def crash_at(point: str, count: int) -> Callable[[str], None]:
    left = count

    def hook(reached: str) -> None:
        nonlocal left
        left -= reached == point
        if left <= 0:  # dead from then on: what runs while the stack unwinds reaches nothing
            raise Crash(point)

    return hook


@contextmanager
def mounted(root: Path, settings: Settings = PLAIN) -> Iterator[tuple[Store, Area, Trainer]]:
    """A store and an area as a mount opens them, without a kernel."""
    with Store.open(root) as store:
        store.ensure_job(JOB, time.time_ns())
        store.recover()
        root_fd = os.open(store.layout.work(JOB), os.O_RDONLY | os.O_DIRECTORY)
        try:
            area = Area(root_fd, store.layout.pending(JOB), settings)
            recover(area, store, JOB, store.layout.pending(JOB))
            yield store, area, Trainer(store, area, store.layout.work(JOB))
        finally:
            os.close(root_fd)


def mount(root: Path, story: Story, settings: Settings = PLAIN) -> None:
    """One life of a mount. A crash anywhere in it ends it there."""

    async def life() -> None:
        committer = Committer(area, store, JOB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            await trio.testing.wait_all_tasks_blocked()
            await story(trainer, committer)
            nursery.cancel_scope.cancel()

    with mounted(root, settings) as (store, area, trainer):
        try:
            trio.run(life)
        except BaseExceptionGroup as group:
            rest = group.split(Crash)[1]
            if rest is not None:
                raise rest from None


async def saves(trainer: Trainer, committer: Committer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/weights", b"one")
    trainer.save("checkpoint-1/trainer_state.json", b"{}")
    trainer.save("a.pt", torch_zip(b"first"))
    trainer.rewrite("a.pt", torch_zip(b"second"))
    trainer.mkdir("checkpoint-2")
    trainer.save("checkpoint-2/weights", b"two")
    trainer.save("checkpoint-2/trainer_state.json", b"{}")
    await committer.drain()


async def drain(_: Trainer, committer: Committer) -> None:
    await committer.drain()


def assert_all_is_well(root: Path) -> None:
    with Store.open(root) as store:
        assert store.verify() == store.problems == []
        named = set()
        for one in store.checkpoints():
            manifest = store.manifest(one.id)
            named |= {entry.digest for entry in (*manifest.entries, *manifest.companions) if entry.digest}
        assert {path.name for path in store.layout.blobs.glob("*/*")} == named
        assert {path.stem for path in store.layout.manifests.iterdir()} == {one.id for one in store.checkpoints()}
        assert os.listdir(store.layout.pending(JOB)) == []


def listed(root: Path, state: State = State.AVAILABLE) -> dict[str, dict[str, bytes]]:
    with mounted(root) as (_, _, trainer):
        return trainer.checkpoints(state)


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_wherever_a_mount_dies_the_next_one_has_every_save_once(tmp_path: Path, point: str, count: int) -> None:
    """The trainer's saves are the same in each life; what was not saved before the crash is saved after it."""
    root = tmp_path / "store"
    with faults.install(crash_at(point, count)):
        mount(root, saves)
    before = listed(root)
    assert before.items() <= SAVED.items()
    mount(root, drain)
    after = listed(root)
    assert before.items() <= after.items() <= SAVED.items()
    on_disk = {path for path in ("checkpoint-1", "checkpoint-2") if (root / "jobs" / JOB / "work" / path).exists()}
    assert on_disk <= {name.partition("@")[0] for name in after}
    newest = (root / "jobs" / JOB / "work" / "a.pt").read_bytes()
    assert newest in [files["a.pt"] for name, files in after.items() if name.startswith("a.pt")]
    assert_all_is_well(root)


@pytest.mark.parametrize(("point", "count"), POINTS)
def test_a_crash_of_the_recovery_itself_loses_nothing_either(tmp_path: Path, point: str, count: int) -> None:
    root = tmp_path / "store"
    with faults.install(crash_at("publish:manifest", 1)):
        mount(root, saves)
    with faults.install(crash_at(point, count)):
        mount(root, drain)
    mount(root, drain)
    assert listed(root) == {name: SAVED[name] for name in listed(root)}
    assert {name.partition("@")[0] for name in listed(root)} == {"checkpoint-1", "checkpoint-2", "a.pt"}
    assert_all_is_well(root)


def test_every_fault_point_is_in_the_matrix(tmp_path: Path) -> None:
    reached: list[str] = []
    with faults.install(reached.append):
        mount(tmp_path / "store", saves)
    assert set(reached) == {point for point, _ in POINTS}


def test_a_mount_of_what_is_committed_commits_nothing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    mount(root, saves)
    ids = [one.id for one in Store.open(root).checkpoints()]
    for _ in range(2):
        mount(root, drain)
    with Store.open(root) as store:
        assert [one.id for one in store.checkpoints()] == ids
    assert listed(root) == SAVED


def test_what_recovery_finds_sealed_is_sealed_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    mount(root, saves)
    with mounted(root) as (_, area, trainer):
        assert key_of(trainer.work / "checkpoint-1" / "weights") in area.sealed
        assert key_of(trainer.work / "a.pt") in area.sealed
        assert key_of(trainer.work / "checkpoint-2" / "trainer_state.json") not in area.sealed  # its equal is the blob
        assert list(area.drafts) == []


def test_a_blob_under_a_temporary_name_is_still_sealed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    mount(root, saves)
    with mounted(root) as (_, _, trainer):
        os.rename(trainer.work / "a.pt", trainer.work / "a.pt.tmp")
    with mounted(root) as (_, area, trainer):
        assert key_of(trainer.work / "a.pt.tmp") in area.sealed


def test_members_of_a_draft_that_waits_are_sealed_and_their_links_hidden(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with faults.install(crash_at("publish:manifest", 1)):
        mount(root, saves)
    with mounted(root) as (_, area, trainer):
        (first, *_) = area.queue
        for linked in first.journal.files:
            links = first.source(linked).stat().st_nlink
            shown = links - area.sealed.hidden_links(linked.key, links)
            assert linked.key in area.sealed
            names = [p for p in trainer.work.rglob("*") if p.is_file() and key_of(p) == linked.key]
            assert shown == len(names)


def test_the_links_of_a_file_in_two_drafts_are_hidden_both(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with mounted(root) as (_, area, trainer):
        trainer.save("last.pt", torch_zip())
        trainer.link("last.pt", "best.pt")
        for path in ("last.pt", "best.pt"):
            area.about_to_lose(path, rewritten=False)
        assert len(area.queue) == 2
    with mounted(root) as (_, area, trainer):
        status = (trainer.work / "last.pt").stat()
        assert status.st_nlink == 4
        assert status.st_nlink - area.sealed.hidden_links(key_of(trainer.work / "last.pt"), 4) == 2


def test_a_torn_file_that_a_kill_left_is_set_aside_as_failed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with mounted(root) as (_, _, trainer):
        (trainer.work / "torn.pt").write_bytes(torch_zip()[:-30])
        (trainer.work / "whole.pt").write_bytes(torch_zip())
    mount(root, drain)
    assert list(listed(root)) == ["whole.pt@1"]
    assert list(listed(root, State.FAILED)) == ["torn.pt@1"]


def test_a_failed_unit_that_is_left_alone_is_listed_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with mounted(root) as (_, _, trainer):
        (trainer.work / "torn.pt").write_bytes(torch_zip()[:-30])
    for _ in range(3):
        mount(root, drain)
    assert list(listed(root, State.FAILED)) == ["torn.pt@1"]


def test_the_equal_bytes_of_a_second_file_are_no_new_version_at_the_next_mount(tmp_path: Path) -> None:
    """Its inode is not the blob, so only its bytes tell."""
    root = tmp_path / "store"

    async def twice(trainer: Trainer, committer: Committer) -> None:
        trainer.save("a.pt", torch_zip())
        trainer.save("b.pt", torch_zip())
        await committer.drain()

    mount(root, twice)
    mount(root, drain)
    assert list(listed(root)) == ["a.pt@1", "b.pt@1"]
    assert_all_is_well(root)


def test_bytes_that_were_in_the_store_before_are_not_read_again_at_each_mount(tmp_path: Path) -> None:
    """A frozen model lies in every checkpoint of a run."""
    names = ["checkpoint-1", "checkpoint-2"]

    async def twice(trainer: Trainer, committer: Committer) -> None:
        for name in names:
            trainer.mkdir(name)
            trainer.save(f"{name}/frozen", torch_zip(b"base"))
        await committer.drain()

    mount(tmp_path, twice)
    with mounted(tmp_path) as (store, area, trainer):
        assert len(store.checkpoints(JOB)) == len(names)
        assert list(area.drafts) == []
        frozen = trainer.work / "checkpoint-2" / "frozen"
        (entry,) = store.manifest(store.checkpoints(JOB)[-1].id).entries
        assert key_of(store.blob_path(entry.digest)) != key_of(frozen)  # the first one's file is the blob
        changed = frozen.stat()
        frozen.write_bytes(torch_zip(b"head"))
        os.utime(frozen, ns=(changed.st_atime_ns, changed.st_mtime_ns + 1))
    with mounted(tmp_path) as (_, area, _):
        assert [unit.name for unit in area.drafts] == ["checkpoint-2"]


def test_a_good_copy_of_damaged_bytes_is_read_again(tmp_path: Path) -> None:
    async def twice(trainer: Trainer, committer: Committer) -> None:
        for name in ("a.pt", "b.pt"):
            trainer.save(name, torch_zip(b"same"))
        await committer.drain()

    mount(tmp_path, twice)
    with mounted(tmp_path) as (store, _, trainer):
        first, second = store.checkpoints(JOB)
        blob = store.blob_path(store.manifest(first.id).entries[0].digest)
        assert key_of(blob) != key_of(trainer.work / second.name)
        blob.chmod(0o600)
        blob.write_bytes(torch_zip(b"flip"))
        store.mark_damaged(second.id, store.examine([second.id]).damage)
    with mounted(tmp_path) as (_, area, _):
        assert second.name in [unit.name for unit in area.drafts]


def test_a_removal_between_mounts_is_no_new_version(tmp_path: Path) -> None:
    root = tmp_path / "store"
    mount(root, saves)
    with mounted(root) as (_, _, trainer), suppress(FileNotFoundError):
        (trainer.work / "checkpoint-1" / "weights").unlink()
    mount(root, drain)
    assert listed(root) == SAVED


def test_names_that_are_no_utf8_survive_a_crash(tmp_path: Path) -> None:
    root = tmp_path / "store"

    async def save(trainer: Trainer, committer: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save(os.fsdecode(b"checkpoint-1/caf\xe9"), b"data")
        await committer.drain()

    with faults.install(crash_at("publish:txn", 1)):
        mount(root, save)
    mount(root, drain)
    assert listed(root) == {"checkpoint-1@1": {os.fsdecode(b"caf\xe9"): b"data"}}


def test_what_a_run_has_left_is_of_that_run_also_where_the_next_one_writes_it_anew(tmp_path: Path) -> None:
    """Else it would be a part of what the other nodes save under that name in the next run."""
    with Store.open(tmp_path) as store:
        store.ensure_job(JOB, 1)
        left = store.layout.work(JOB) / "a.pt"
        left.write_bytes(torch_zip(b"first"))
        os.utime(left, ns=(15, 15))

    async def anew(trainer: Trainer, committer: Committer) -> None:
        trainer.rewrite("a.pt", torch_zip(b"second"))
        await committer.drain()

    mount(tmp_path, anew, Settings(run="third", runs=((5, "first"), (10, "second"), (20, "third"))))
    with Store.open(tmp_path) as store:
        assert [one.run for one in store.checkpoints(JOB)] == ["second", "third"]


def test_what_is_older_than_all_runs_is_of_the_one_that_finds_it() -> None:
    assert Settings(run="this", runs=((5, "this"),)).run_at(4) == "this"
    assert Settings().run_at(4) is None
