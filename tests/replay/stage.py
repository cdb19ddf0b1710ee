"""The stage that a trace is played on: a store, the filesystem without a kernel, the committer, a clock that jumps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_ckpt.staging import Area, Committer, Settings
from fuse_ckpt.store import Store
from fuse_ckpt.vfs import Filesystem, job_filesystem
from tests.replay.player import JOB, PATIENCE, Exits, Player, Result, results
from tests.replay.traces import Trace
from tests.vfs.kernel import give_back


def play(trace: Trace, place: Path, monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """What is listed in the end of a trace that was played in the directory `place`."""
    exits = _without_processes(monkeypatch)
    with Store.open(place / "store") as store:
        store.ensure_job(JOB, 1)
        with _root(store) as root_fd:
            trio.run(_beside, store, root_fd, trace, exits, clock=MockClock(autojump_threshold=0))
        problems = store.verify()
        assert problems == []
        assert _open_below(place / "store" / "jobs") == []
        return results(store)


def _open_below(place: Path) -> list[str]:
    """What this process has open there."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [
        path for path in (os.readlink(one) for one in links if os.path.lexists(one)) if path.startswith(f"{place}/")
    ]


@contextlib.contextmanager
def _root(store: Store) -> Iterator[int]:
    fd = os.open(store.layout.work(JOB), os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


async def _beside(store: Store, root_fd: int, trace: Trace, exits: Exits) -> None:
    area = Area(root_fd, store.layout.pending(JOB), Settings(), trio.current_time)
    committer = Committer(area, store, JOB)
    async with trio.open_nursery() as nursery:
        uses = store.uses("a replay")
        filesystem: Filesystem = job_filesystem(store, JOB, root_fd, area, uses, lambda nid, name: None)
        nursery.start_soon(committer.run)
        await wait_all_tasks_blocked()
        await Player(filesystem, area, exits).play(trace)
        await trio.sleep(PATIENCE)
        await wait_all_tasks_blocked()
        assert not area.drafts, "something still waits"
        nursery.cancel_scope.cancel()
        give_back(filesystem)
        uses.close()


def _without_processes(monkeypatch: pytest.MonkeyPatch) -> Exits:
    """Processes are those of the trace, and threads run inline: the clock cannot jump meanwhile. The disk is trusted:
    what survives a power cut is tested elsewhere."""

    async def inline(_: object, function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    async def to_thread(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        return await inline(None, function, *arguments)

    exits = Exits()
    for sync in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, sync, lambda fd: None)
    monkeypatch.setattr("fuse_ckpt.staging.processes._read_process", lambda task: task)
    monkeypatch.setattr("fuse_ckpt.staging.committer.open_process", lambda process: None)
    monkeypatch.setattr("fuse_ckpt.staging.committer.wait_exit", exits.wait)
    monkeypatch.setattr(trio.to_thread, "run_sync", to_thread)
    with contextlib.suppress(ImportError):
        monkeypatch.setattr("fuse_ckpt.staging.workers.Workers.run", inline)
    return exits
