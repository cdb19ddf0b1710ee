from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fuse_ckpt.staging import Area, Committer, Settings
from fuse_ckpt.staging.workers import Workers
from fuse_ckpt.store import Store
from tests.staging.trainer import JOB, Clock, Trainer, new_area


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        opened.ensure_job(JOB, 1)
        yield opened


@pytest.fixture
def root_fd(store: Store) -> Iterator[int]:
    fd = os.open(store.layout.work(JOB), os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def trainer(store: Store, root_fd: int, clock: Clock) -> Trainer:
    return Trainer(store, new_area(store, root_fd, clock), store.layout.work(JOB))


Run = Callable[[Callable[[Trainer, Committer], Awaitable[None]]], None]


@pytest.fixture
def run(store: Store, root_fd: int, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a story beside a committer; worker threads run inline, so that the clock cannot jump meanwhile."""

    async def inline(function: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    monkeypatch.setattr(Workers, "run", lambda _, function, *arguments: inline(function, *arguments))

    async def beside(story: Callable[[Trainer, Committer], Awaitable[None]]) -> None:
        area = Area(root_fd, store.layout.pending(JOB), Settings(), trio.current_time)
        committer = Committer(area, store, JOB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            await wait_all_tasks_blocked()
            await story(Trainer(store, area, store.layout.work(JOB)), committer)
            nursery.cancel_scope.cancel()

    def start(story: Callable[[Trainer, Committer], Awaitable[None]]) -> None:
        trio.run(beside, story, clock=MockClock(autojump_threshold=0), strict_exception_groups=True)

    return start
