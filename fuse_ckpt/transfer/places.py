"""Where files may be written to, and whether there is room."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError, UsageError

FSTYPE = "fuse.fuse_ckpt"  # of every mount of ours, in /proc/self/mountinfo
_UNITS = ("bytes", "KB", "MB", "GB", "TB", "PB")


def refuse_ours(path: Path, store: Path, what: str) -> None:
    """Raise UsageError where `path`, which need not exist yet, lies in the store or in a mount of ours.

    What is written there would become a checkpoint itself, or break one. `what` is the option to choose otherwise.
    """
    real = existing(path).resolve()
    if _mounted_type(real) == FSTYPE:
        raise UsageError(f"{path} lies in a mount of fuse-ckpt: choose a {what} outside of it.")
    root = store.resolve()
    if real == root or root in real.parents:
        raise UsageError(f"{path} lies in the store {store} itself: choose a {what} outside of it.")


def existing(path: Path) -> Path:
    """The nearest directory on the way to `path` that is there."""
    while not path.exists():
        path = path.parent
    return path


def check_room(directory: Path, needed: int, shares: Callable[[int], bool]) -> None:
    """Raise FuseCkptError where the disk that `directory` lies on has fewer than `needed` bytes free.

    `shares(fd)` is asked then whether the bytes need no room there: whether they could be shared with the empty file.
    """
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if needed <= free:
        return
    with _nameless(directory) as fd:
        if fd is not None and shares(fd):
            return
    raise FuseCkptError(
        f"{directory} has {_size(free)} free, and {_size(needed)} are needed: make room, or choose another disk."
    )


@contextlib.contextmanager
def told_where_full(what: str, way_out: str) -> Iterator[None]:
    """A disk, or somebody's quota, that fills up after all is a FuseCkptError that says where, and the way out."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FuseCkptError(f"{what}: {error.strerror}: {way_out}.") from error


@contextlib.contextmanager
def _nameless(directory: Path) -> Iterator[int | None]:
    """An empty file that is gone when it is closed; None where the disk knows no such thing."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _mounted_type(real: Path) -> str:
    """The type of the filesystem that `real` lies on, by the mount with its device number; "" where there is none."""
    device = os.stat(real).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            if fields.split(" ", 3)[2] == wanted:
                return rest.split(" ", 1)[0]
    return ""


def _size(count: int) -> str:
    power = 0
    value = float(count)
    while value >= 1024 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.3g} {_UNITS[power]}"
