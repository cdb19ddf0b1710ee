"""A crash anywhere in an amendment: the next mount has every file once, under one id."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from fuse_ckpt import faults
from fuse_ckpt.model import State
from fuse_ckpt.staging import Committer
from fuse_ckpt.store import Store
from tests.staging.test_recovery import Crash, assert_all_is_well, drain, listed, mount, mounted
from tests.staging.trainer import JOB, Trainer

FIRST = {"weights": b"one", "trainer_state.json": b"{}"}
WHOLE = FIRST | {"rank1": b"late", "rank2": b"later"}


async def saves_late(trainer: Trainer, committer: Committer) -> None:
    trainer.mkdir("checkpoint-1")
    for name, data in FIRST.items():
        trainer.save(f"checkpoint-1/{name}", data)
    await committer.drain()
    for name in ("rank1", "rank2"):
        trainer.save(f"checkpoint-1/{name}", WHOLE[name])
        await committer.drain()


def crash_at_number(number: int) -> Callable[[str], None]:
    """Dead from the n-th point on, whichever that is."""
    left = number

    def hook(point: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash(point)

    return hook


def test_wherever_it_dies_there_is_one_checkpoint_with_all_that_was_saved(tmp_path: Path) -> None:
    reached: list[str] = []
    with faults.install(reached.append):
        mount(tmp_path / "whole", saves_late)
    assert {"amend:manifest", "amend:txn", "amend:done"} <= set(reached)
    assert listed(tmp_path / "whole") == {"checkpoint-1@1": WHOLE}
    for number, point in enumerate(reached):
        root = tmp_path / f"{number}"
        with faults.install(crash_at_number(number)):
            mount(root, saves_late)
        work = root / "jobs" / JOB / "work" / "checkpoint-1"
        saved = {path.name: path.read_bytes() for path in work.iterdir()} if work.is_dir() else {}
        mount(root, drain)
        assert listed(root) == {"checkpoint-1@1": saved}, (number, point)
        assert_all_is_well(root)


def test_a_crash_of_the_recovery_of_an_amendment_loses_nothing_either(tmp_path: Path) -> None:
    def second_txn(left: list[str]) -> Callable[[str], None]:
        def hook(point: str) -> None:
            if not left or point == left[0]:
                left.clear()
                raise Crash(point)

        return hook

    for point in ("amend:manifest", "amend:txn", "amend:done", "adopt:link", "seal:done"):
        root = tmp_path / point.replace(":", "-")
        with faults.install(second_txn(["amend:txn"])):
            mount(root, saves_late)
        with faults.install(second_txn([point])):
            mount(root, drain)
        mount(root, drain)
        assert listed(root) == {"checkpoint-1@1": FIRST | {"rank1": b"late"}}, point
        assert_all_is_well(root)


def kill_after(*late: str) -> Callable[[Path], None]:
    """A daemon that committed, and one that was killed before it saw the late files."""

    def build(root: Path) -> None:
        async def save(trainer: Trainer, committer: Committer) -> None:
            trainer.mkdir("checkpoint-1")
            for name, data in FIRST.items():
                trainer.save(f"checkpoint-1/{name}", data)
            await committer.drain()

        mount(root, save)
        with mounted(root) as (_, _, trainer):
            for name in late:
                (trainer.work / "checkpoint-1" / name).write_bytes(WHOLE[name])

    return build


def test_what_came_in_time_before_a_kill_amends_at_the_next_mount(tmp_path: Path) -> None:
    root = tmp_path / "store"
    kill_after("rank1", "rank2")(root)
    mount(root, drain)
    assert listed(root) == {"checkpoint-1@1": WHOLE}
    with Store.open(root) as store:
        assert [one.revision for one in store.checkpoints()] == [2]


def test_what_came_too_late_before_a_kill_is_a_version(tmp_path: Path) -> None:
    root = tmp_path / "store"
    kill_after("rank1")(root)
    later = time.time() + 60
    os.utime(root / "jobs" / JOB / "work" / "checkpoint-1" / "rank1", (later, later))
    with Store.open(root) as store:  # as if the commit lay a minute back
        (one,) = store.checkpoints()
    mount_a_minute_later(root)
    assert listed(root) == {"checkpoint-1@1": FIRST, "checkpoint-1@2": FIRST | {"rank1": b"late"}}
    assert one.revision == 1


def mount_a_minute_later(root: Path) -> None:
    real = time.time_ns
    time.time_ns = lambda: real() + 60 * 10**9
    try:
        mount(root, drain)
    finally:
        time.time_ns = real


def test_a_mount_within_the_time_still_amends(tmp_path: Path) -> None:
    root = tmp_path / "store"
    kill_after()(root)

    async def late(trainer: Trainer, committer: Committer) -> None:
        trainer.save("checkpoint-1/rank1", b"late")
        await committer.drain()

    mount(root, late)
    assert listed(root) == {"checkpoint-1@1": FIRST | {"rank1": b"late"}}


def test_a_settled_one_gets_a_version_at_the_next_mount(tmp_path: Path) -> None:
    root = tmp_path / "store"
    kill_after("rank1")(root)
    with Store.open(root) as store:
        store.settle(store.checkpoints()[0].id)
    mount(root, drain)
    assert listed(root) == {"checkpoint-1@1": FIRST, "checkpoint-1@2": FIRST | {"rank1": b"late"}}


def test_a_draft_that_waits_is_amended_by_what_the_kill_left_beside_it(tmp_path: Path) -> None:
    root = tmp_path / "store"

    def at_first_commit(point: str) -> None:
        if point == "adopt:fsync":
            raise Crash(point)

    async def save(trainer: Trainer, committer: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        for name, data in FIRST.items():
            trainer.save(f"checkpoint-1/{name}", data)
        await committer.drain()

    with faults.install(at_first_commit):
        mount(root, save)
    work = root / "jobs" / JOB / "work" / "checkpoint-1"
    (work / "rank1").write_bytes(b"late")
    mount(root, drain)
    assert listed(root) == {"checkpoint-1@1": FIRST | {"rank1": b"late"}}
    assert listed(root, State.FAILED) == {}
    assert_all_is_well(root)
