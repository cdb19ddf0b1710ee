"""The directories under test, by the names that the tables call them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PLAIN = "plain"
OURS = "fuse-ckpt"
VIEW = "read view"
EXAMPLE = "example"


class Place:
    """A directory to save to and load from."""

    writable = True

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path

    def file(self, name: str) -> Path:
        """Where a file that was saved under `name` is read."""
        return self.path / name

    def settle(self) -> None:
        """Return when nothing goes on in the background that the next measurement would feel."""

    def close(self) -> None:
        """Leave nothing behind."""


class Plain(Place):
    """A directory of our own on the store's disk: what all the others are compared with."""

    def __init__(self, workspace: Path) -> None:
        super().__init__(PLAIN, workspace / "plain")
        self.path.mkdir()


class Foreign(Place):
    """A directory that somebody else mounted; what we make in it, in a directory of its own, goes with us."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name, Path(tempfile.mkdtemp(prefix=".fuse-ckpt-bench-", dir=directory)))

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class View(Place):
    """The checkpoints of a mounted job: the first that was committed of each file's name."""

    writable = False

    def __init__(self, output: Place) -> None:
        super().__init__(VIEW, output.path / ".checkpoints" / "by-name")
        self._output = output

    def file(self, name: str) -> Path:
        return self.path / f"{name}@1" / name

    def settle(self) -> None:
        self._output.settle()


def remove_workspace(workspace: Path) -> None:
    """Remove a directory of ours, never through a mount that could not be taken away."""
    devices = {os.stat(path).st_dev for path in (workspace, *workspace.iterdir())}
    if len(devices) > 1:
        raise OSError(f"something is still mounted below {workspace}: unmount it and remove it")
    shutil.rmtree(workspace)
