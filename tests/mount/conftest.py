"""Fixtures for tests that run the program as a person does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MountJob
from tests.mount.harness import Mount
from tests.mount.runs import Desk, python


@pytest.fixture
def desk(tmp_path: Path, mount_job: MountJob) -> Iterator[Desk]:
    """A store and the programs on it (`mount_job` for its word on whether anything can be mounted here)."""
    place = tmp_path / "desk"
    place.mkdir()
    desk = Desk(place)
    yield desk
    assert desk.close() == []


@pytest.fixture
def seeded(desk: Desk) -> Desk:
    """A store with two checkpoints of a job."""
    desk.run("kept", command=python("(out / 'a.bin').write_bytes(b'a'); (out / 'b.bin').write_bytes(b'b')"))
    assert len(desk.listed("kept")) == 2
    return desk


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to mount at."""
    place = tmp_path / "place"
    place.mkdir()
    return place


@pytest.fixture
def passthrough(mounted: Mount) -> Mount:
    """`mounted`, where the kernel moves the data."""
    if mounted.data_path != "passthrough":
        asked_for = os.environ.get("FUSE_CKPT_DATA_PATH") == "daemon"
        lacking = pytest.fail if os.environ.get("CI") and not asked_for else pytest.skip
        lacking("the daemon moves the data here")
    return mounted
