"""flock, and nothing but flock: it dies with its holder, and works between processes, threads and pid namespaces.

Each Lock has an open file description of its own, so two threads of a process exclude each other as two processes do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from .durable import write_all


class Lock:
    """A held lock. `close()`, leaving the `with` block, or the death of the process gives it back."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def note(self, text: str) -> None:
        """Write into the lock file what whoever finds it held should read. Only for an exclusive lock."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._fd, text.encode(errors="surrogateescape"))

    def close(self) -> None:
        """Give the lock back; a second close does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Lease(Lock):
    """A checkpoint in use: it cannot be deleted until the lease is closed."""

    def __init__(self, path: Path, fd: int, checkpoint: str) -> None:
        super().__init__(path, fd)
        self.checkpoint = checkpoint


def shared(path: Path) -> Lock:
    """Wait for a shared lock on the file `path`, which is made where it is missing."""
    return Lock(path, _wait(path, fcntl.LOCK_SH))


def exclusive(path: Path) -> Lock:
    """Wait for an exclusive lock on the file `path`."""
    return Lock(path, _wait(path, fcntl.LOCK_EX))


def try_exclusive(path: Path) -> Lock | None:
    """An exclusive lock on the file `path`, or None where somebody holds it."""
    try:
        return Lock(path, _wait(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return None


def lease(path: Path, checkpoint: str) -> Lease:
    """A shared lock on behalf of `checkpoint`; waits while a delete has it."""
    return Lease(path, _wait(path, fcntl.LOCK_SH), checkpoint)


def is_held(path: Path) -> bool:
    """Whether somebody holds the file `path` exclusively at this moment."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_note(path: Path) -> str:
    """What the holder of an exclusive lock wrote into it; "" where there is nothing."""
    try:
        return path.read_bytes().decode(errors="surrogateescape").strip()
    except FileNotFoundError:
        return ""


def _wait(path: Path, how: int) -> int:
    """Open and lock `path`, again where its file was unlinked meanwhile: a lock on a nameless file excludes nobody."""
    while True:
        fd = _open(path)
        try:
            fcntl.flock(fd, how)
            if _names(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _open(path: Path) -> int:
    """The file of a lock. On a disk that is read-only, where no new one can be made, their directory stands for it."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _names(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
