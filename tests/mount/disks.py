"""A small disk of a test's own: ext4 in a file, by a loop device. Root only."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.harness import wait_until


@contextmanager
def small_disk(top: Path, size: int, *options: str) -> Iterator[Path]:
    """A mounted filesystem of `size` bytes, gone at the end. Fails under CI where it cannot be had, else skips."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("a loop device needs root")
    image, place = top / "disk.img", top / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
    run("mount", "-o", ",".join(["loop", *options]), str(image), str(place))
    try:
        yield place
    finally:
        wait_until("the disk is let go", lambda: subprocess.run(["umount", place], check=False).returncode == 0)
        image.unlink()


def remount(place: Path, how: str) -> None:
    """Make a disk read-only ("ro") or writable ("rw")."""
    wait_until(f"{place} is {how}", lambda: not subprocess.run(["mount", "-o", f"remount,{how}", place]).returncode)


def fill(directory: Path) -> Path:
    """A file that takes all the room there is, to the last block."""
    ballast = directory / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(fd, b"\xff" * size)
        os.fsync(fd)
        assert os.statvfs(directory).f_bavail == 0
    finally:
        os.close(fd)
    return ballast


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
