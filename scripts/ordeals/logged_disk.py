"""A disk that remembers every write and every flush: `python -m scripts.ordeals.logged_disk MOUNTPOINT IMAGE LOG`.

A FUSE filesystem with one file, `disk`, whose bytes are IMAGE's. A loop device on it turns each request of a filesystem
into a record of LOG, in order: a write with its bytes, or a flush, after which the disk has promised what came before.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

NAME = b"disk"
WRITE, FLUSH = 1, 2
RECORD = struct.Struct("<BQI")  # kind, offset in the disk, bytes that follow
_FILE = pyfuse3.ROOT_INODE + 1


@dataclass(frozen=True)
class Record:
    """One request. `end`: where the log went on after it; `at`: where its bytes lie in the log."""

    kind: int
    offset: int
    at: int
    size: int

    @property
    def end(self) -> int:
        return self.at + self.size


def records(log: Path) -> Iterator[Record]:
    """The records of a log, in the order in which they happened."""
    with log.open("rb") as file:
        while len(head := file.read(RECORD.size)) == RECORD.size:
            kind, offset, size = RECORD.unpack(head)
            yield Record(kind, offset, file.tell(), size)
            file.seek(size, os.SEEK_CUR)


class LoggedDisk(pyfuse3.Operations):
    """The filesystem. Each answer comes after its record: what the kernel was told is in the log."""

    def __init__(self, image: int, log: int) -> None:
        super().__init__()
        self._image = image
        self._log = log

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_FILE, ctx)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o600 if inode == _FILE else stat.S_IFDIR | 0o700
        entry.st_size = os.fstat(self._image).st_size if inode == _FILE else 0
        entry.st_nlink = 1
        return entry

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(self._image, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        os.pwrite(self._image, buf, off)
        self._append(WRITE, off, buf)
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._append(FLUSH, 0, b"")

    async def flush(self, fh: int) -> None:
        return

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        return

    def _append(self, kind: int, offset: int, data: bytes) -> None:
        os.writev(self._log, [RECORD.pack(kind, offset, len(data)), data])


def main() -> int:
    mountpoint, image, log = sys.argv[1:]
    image_fd = os.open(image, os.O_RDWR)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    pyfuse3.init(LoggedDisk(image_fd, log_fd), mountpoint, {"fsname=logged-disk"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
