"""The desk of tests/cli, for programs that train."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MountJob
from tests.mount.runs import Desk


@pytest.fixture
def desk(tmp_path: Path, mount_job: MountJob) -> Iterator[Desk]:
    """A store and the programs on it (`mount_job` for its word on whether anything can be mounted here)."""
    place = tmp_path / "desk"
    place.mkdir()
    desk = Desk(place)
    yield desk
    assert desk.close() == []
