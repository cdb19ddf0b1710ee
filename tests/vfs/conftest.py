from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vfs.kernel import Kernel, Mounted, mounted


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounted]:
    with mounted(tmp_path / "store") as mount:
        yield mount


@pytest.fixture
def kernel(mount: Mounted) -> Kernel:
    return mount.kernel
