from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

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
