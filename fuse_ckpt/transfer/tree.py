"""Directories by descriptor: no symlink below the first one is ever followed, whoever moves names meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from fuse_ckpt.model import Entry

_libc = ctypes.CDLL(None, use_errno=True)

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
FEW = 8  # files; fsync of each tells the disk to flush, some milliseconds, where one call for all of them does it once
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def opened(root_fd: int, path: str, *, create: bool = False) -> Iterator[int]:
    """A descriptor of the directory `path` below `root_fd` ("": of itself), reached without following a symlink."""
    fd = os.dup(root_fd)
    try:
        for part in path.split("/") if path else ():
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
            fd, outer = os.open(part, DIRECTORY, dir_fd=fd), fd
            os.close(outer)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def parent(root_fd: int, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory that `path` lies in, and its name there."""
    above, _, name = path.rpartition("/")
    with opened(root_fd, above, create=create) as fd:
        yield fd, name


@contextlib.contextmanager
def file_at(root_fd: int, path: str) -> Iterator[int | None]:
    """A descriptor to read the regular file `path`; None where there is none, be there a symlink or a device."""
    try:
        with parent(root_fd, path) as (fd, name):
            found = os.open(name, READ, dir_fd=fd)
    except OSError:
        yield None
        return
    try:
        yield found if stat.S_ISREG(os.fstat(found).st_mode) else None
    finally:
        os.close(found)


def prune(root_fd: int, files: Collection[str], directories: Collection[str]) -> None:
    """Remove all that is below `root_fd` but the regular files and the directories of those paths."""
    for top, inner, names, fd in os.fwalk(".", topdown=False, follow_symlinks=False, dir_fd=root_fd):
        above = top.removeprefix(".").removeprefix("/")
        for name in (*names, *inner):
            path = f"{above}/{name}" if above else name
            mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                if path not in directories:
                    os.rmdir(name, dir_fd=fd)
            elif path not in files or not stat.S_ISREG(mode):
                os.unlink(name, dir_fd=fd)


def restore(fd: int, entry: Entry, at_least: int) -> None:
    """Give an open file or directory the entry's mode (no set-id bits; `at_least` in any case) and time."""
    os.fchmod(fd, (entry.mode & 0o777) | at_least)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def sync(root_fd: int, paths: Collection[str]) -> None:
    """Make files and directories below `root_fd`, and itself, durable."""
    if len(paths) > FEW:
        sync_disk(root_fd)
        return
    for path in paths:
        with parent(root_fd, path) as (above, name):
            fd = os.open(name, READ, dir_fd=above)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    os.fsync(root_fd)


def sync_path(path: Path) -> None:
    """Make a file or directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_disk(directory: Path | int) -> None:
    """Make all of the filesystem that a directory lies on durable. Raises OSError, on Linux 5.8 also for what could
    not be written."""
    fd = directory if isinstance(directory, int) else os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        if fd is not directory:
            os.close(fd)


def is_at(fd: int, path: Path) -> bool:
    """Whether what is open as `fd` still lies at `path`, and has not been moved or removed."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def umask() -> int:
    # There is no way to ask without setting it; who asks has one thread.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
