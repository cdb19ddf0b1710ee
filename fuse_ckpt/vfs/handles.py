"""Open files, by the numbers that the kernel knows them by, and the backing files that are lent to it for them.

The kernel's rule: an inode has one backing id, or none, from its first open to its last release.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from fuse_ckpt.staging import UNSEEN
from fuse_ckpt.vfs.inodes import Inode, WorkInode
from fuse_ckpt.vfs.readahead import ReadAhead


def read_only() -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS))


@dataclass(slots=True)
class Handle:
    """An open file description. `before`: its file's state at its opening; None where opening it changed the file.

    `process` opened it; `death`: how that was dying when it last closed a descriptor of it.
    """

    inode: WorkInode
    fd: int
    writable: bool = False
    before: tuple[int, int, int] | None = None
    process: int = UNSEEN
    death: str | None = None
    flushed: bool = False  # a descriptor of it was closed
    unsafe: str | None = None  # why its bytes may not be on the disk, although somebody waited for that

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        return os.preadv(self.fd, [buffer], offset)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        return os.pwrite(self.fd, data, offset)

    def seek(self, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE of lseek(2)."""
        return os.lseek(self.fd, offset, whence)

    def drop_set_ids(self) -> None:
        """Take set-user-id and, from what its group may execute, set-group-id away from the file."""
        mode = stat.S_IMODE(os.fstat(self.fd).st_mode)
        taken = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        if mode & taken:
            os.fchmod(self.fd, mode & ~taken)


class ViewFile:
    """An open file of the read view: a blob's descriptor, or bytes of our own."""

    writable = False

    def __init__(self, inode: Inode, fd: int | None, data: bytes) -> None:
        self.inode = inode
        self.fd = fd
        self.data = data

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset) if self.fd is not None else self.data[offset : offset + size]

    def read_into(self, offset: int, buffer: memoryview) -> int:
        if self.fd is not None:
            return os.preadv(self.fd, [buffer], offset)
        data = self.data[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        return len(data)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        raise read_only()

    def drop_set_ids(self) -> None:
        raise read_only()

    def seek(self, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE of lseek(2); bytes of our own have no holes."""
        if self.fd is not None:
            return os.lseek(self.fd, offset, whence)
        if not 0 <= offset < len(self.data):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return offset if whence == os.SEEK_DATA else len(self.data)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Handles:
    """All open files. `lend` gives the kernel the file behind a descriptor (0: not taken), `give_back` ends that."""

    def __init__(self) -> None:
        self.lend: Callable[[int], int] = lambda fd: 0
        self.give_back: Callable[[int], None] = lambda backing_id: None
        self.read_ahead = ReadAhead()
        self._open: dict[int, Handle | ViewFile] = {}
        self._next = 1

    def __len__(self) -> int:
        return len(self._open)

    def __getitem__(self, fh: int) -> Handle | ViewFile:
        try:
            return self._open[fh]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def numbers(self) -> list[int]:
        return list(self._open)

    def add(self, handle: Handle | ViewFile) -> int:
        """A handle that the kernel is about to hear of; returns its number."""
        inode = handle.inode
        if inode.opens == 0 and handle.fd is not None:
            inode.backing_id = self.lend(handle.fd)
        if inode.backing_id and handle.fd is not None and not handle.writable:
            self.read_ahead.opened(handle.fd)
        if isinstance(handle, Handle) and handle.writable and inode.backing_id:
            handle.inode.backing.unsettled = True
        inode.opens += 1
        fh, self._next = self._next, self._next + 1
        self._open[fh] = handle
        return fh

    def remove(self, fh: int, close: Callable[[Handle | ViewFile], None]) -> None:
        """The kernel has released it; `close` is called before a backing id goes."""
        handle = self[fh]
        del self._open[fh]
        inode = handle.inode
        inode.opens -= 1
        try:
            close(handle)
        finally:
            if inode.opens == 0 and inode.backing_id:
                self.give_back(inode.backing_id)
                inode.backing_id = 0

    def descriptor(self, fh: int) -> int:
        """The descriptor of an open file's bytes. Raises EOPNOTSUPP for one that has none: the kernel copies itself."""
        fd = self[fh].fd
        if fd is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return fd
