"""A file that is half fetched, and can be gone on with by whoever comes next.

Beside PATH lie `PATH.part`, the bytes in order, and `PATH.ranges`: the digest that the whole is to have, then the
length and the digest of each range. A range counts as long as its bytes have its digest. So nothing has to be on the
disk in any order: what a power cut has taken of either file is fetched again, and nothing false is gone on with.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

_RANGE = struct.Struct(">I16s")  # how many bytes, and their digest
_RANGE_MAX = 64 << 20  # bytes; a record that says more is none of ours
_WHOLE = 32  # bytes of the whole's digest
_SYNCED = 64 << 20  # bytes after which both files go to the disk: a power cut costs no more
_NEW = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Partial:
    """The bytes of `digest` (BLAKE3-256, hex) on their way to `path`, as far as they are here. For one at a time.

    `held`: bytes, from the beginning. Leaving the block keeps them, where there are any; after an error of the disk
    they go, for they may be what has filled it.
    """

    def __init__(self, path: Path, digest: str, advance: Callable[[int], None]) -> None:
        self._path = path
        self._digest = digest
        self._names = (path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.ranges"))
        self._bytes = os.open(self._names[0], _NEW, 0o600)
        self._ranges = os.open(self._names[1], _NEW, 0o600)
        self._hasher = blake3()
        self._recorded = 0  # bytes of the ranges' file
        self._unsynced = 0
        self.held = 0
        self._recall(advance)

    def add(self, data: memoryview) -> None:
        """The next range."""
        _write(self._bytes, data, self.held)
        self._count(data)
        record = _RANGE.pack(len(data), _short(data))
        _write(self._ranges, memoryview(record), self._recorded)
        self._recorded += len(record)
        self._unsynced += len(data)
        if self._unsynced >= _SYNCED:
            os.fdatasync(self._bytes)
            os.fdatasync(self._ranges)
            self._unsynced = 0

    @property
    def is_right(self) -> bool:
        """Whether all that is held has the digest."""
        return self._hasher.hexdigest() == self._digest

    def finish(self) -> None:
        """Give it its name, on the disk."""
        os.fsync(self._bytes)
        os.rename(self._names[0], self._path)
        self._names[1].unlink(missing_ok=True)
        _sync_directory(self._path.parent)

    def clear(self) -> None:
        """Hold nothing any more."""
        self._hasher.reset()
        self.held = 0
        os.ftruncate(self._ranges, 0)
        os.ftruncate(self._bytes, 0)
        _write(self._ranges, memoryview(bytes.fromhex(self._digest)), 0)
        self._recorded = _WHOLE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.held or isinstance(error, OSError):
            for name in self._names:
                name.unlink(missing_ok=True)
        os.close(self._bytes)
        os.close(self._ranges)

    def _recall(self, advance: Callable[[int], None]) -> None:
        """Hold what an earlier fetch has left."""
        self._recorded = _WHOLE
        for length, digest in self._recorded_ranges():
            data = os.pread(self._bytes, length, self.held)
            if len(data) != length or _short(data) != digest:
                break
            self._count(data)
            self._recorded += _RANGE.size
            advance(length)
        if not self.held:
            self.clear()
        os.ftruncate(self._bytes, self.held)
        os.ftruncate(self._ranges, self._recorded)

    def _recorded_ranges(self) -> Iterator[tuple[int, bytes]]:
        if os.pread(self._ranges, _WHOLE, 0) != bytes.fromhex(self._digest):
            return
        at = _WHOLE
        while len(record := os.pread(self._ranges, _RANGE.size, at)) == _RANGE.size:
            length, digest = _RANGE.unpack(record)
            if not 0 < length <= _RANGE_MAX:
                return
            yield length, digest
            at += _RANGE.size

    def _count(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        self.held += len(data)


def half_made(path: Path) -> int:
    """How many bytes of `path` are on this disk already, on their way."""
    with contextlib.suppress(FileNotFoundError):
        return path.with_name(f"{path.name}.part").stat().st_size
    return 0


def _short(data: bytes | memoryview) -> bytes:
    return blake3(data).digest(length=16)


def _write(fd: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
