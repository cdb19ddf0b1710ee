"""flock, and nothing but flock: it dies with its holder, and works between processes, threads and pid namespaces.

Each Lock has an open file description of its own, so two threads of a process exclude each other as two processes do.
A child of fork() would hold it, too, and long after its parent let go: so the child's first act is to close them all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from threading import Lock as Mutex
from types import TracebackType
from typing import Self

from .durable import write_all


class Lock:
    """A held lock. `close()`, leaving the `with` block, or the death of the process gives it back."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._process = os.getpid()

    def note(self, text: str) -> None:
        """Write into the lock file what whoever finds it held should read. Only for an exclusive lock."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        write_all(self._fd, text.encode(errors="surrogateescape"))

    def set_aside(self, size: int) -> None:
        """Have room on the disk for so many bytes of the lock file, where the filesystem can."""
        os.posix_fallocate(self._fd, 0, size)

    def put(self, offset: int, data: bytes) -> None:
        """Write `data` at `offset` of the lock file, in one step. Only for an exclusive lock."""
        if os.pwrite(self._fd, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Give the lock back; a second close does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0 and self._process == os.getpid():
            _close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Lease(Lock):
    """A checkpoint in use: it cannot be deleted until the lease is closed. The file says by whom, a line each."""

    def __init__(self, path: Path, fd: int, checkpoint: str, holder: str) -> None:
        super().__init__(path, fd)
        self.checkpoint = checkpoint
        line = " ".join(holder.split()).encode(errors="surrogateescape") + b"\n"
        self._line = len(line)
        self._end = os.lseek(fd, 0, os.SEEK_CUR)
        with suppress(OSError):  # on a full disk it is a lease all the same
            os.write(fd, line)
            self._end = os.lseek(fd, 0, os.SEEK_CUR)

    def close(self) -> None:
        if self._fd >= 0 and self._end >= self._line and self._process == os.getpid():
            fcntl.fcntl(self._fd, fcntl.F_SETFL, 0)  # with O_APPEND even pwrite appends
            os.pwrite(self._fd, b" " * (self._line - 1) + b"\n", self._end - self._line)
        super().close()


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


def lease(path: Path, checkpoint: str, holder: str) -> Lease:
    """A shared lock on behalf of `checkpoint`; waits while a delete has it. `holder`: what its file says of us."""
    while True:
        fd = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            with suppress(OSError):  # nobody else has it: the lines in it are of the dead (a read-only disk keeps them)
                _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(fd, 0)
            _flock(fd, fcntl.LOCK_SH)
            if _names(path, fd):
                return Lease(path, fd, checkpoint, holder)
        except BaseException:
            _close(fd)
            raise
        _close(fd)


def holders(path: Path) -> str:
    """What the holders of a lease say of themselves; "" where they do not."""
    lines = (line.strip() for line in read_note(path).splitlines())
    return ", ".join(dict.fromkeys(line for line in lines if line))


def is_held(path: Path) -> bool:
    """Whether somebody holds the file `path` exclusively at this moment."""
    try:
        fd = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        _close(fd)
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
        fd = _open(path, os.O_RDWR | os.O_CREAT)
        try:
            _flock(fd, how)
            if _names(path, fd):
                return fd
        except BaseException:
            _close(fd)
            raise
        _close(fd)


def _flock(fd: int, how: int) -> None:
    """Lock it; a directory, which stands for many files, always for all: where it does, nobody changes anything."""
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        how = fcntl.LOCK_SH | how & fcntl.LOCK_NB
    fcntl.flock(fd, how)


def _open_file(path: Path, how: int) -> int:
    """The file of a lock. On a disk that is read-only, where no new one can be made, their directory stands for it."""
    try:
        return os.open(path, how, 0o600)
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


_descriptors: set[int] = set()  # of this process's locks
_forking = Mutex()  # held while one is opened or closed, and over a fork


def _open(path: Path, how: int) -> int:
    with _forking:
        fd = _open_file(path, how)
        _descriptors.add(fd)
        return fd


def _close(fd: int) -> None:
    with _forking:
        _descriptors.discard(fd)
        os.close(fd)


def _forked() -> None:
    for fd in _descriptors:
        os.close(fd)
    _descriptors.clear()
    _forking.release()


os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_forked)
