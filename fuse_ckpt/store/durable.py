"""Files that are wholly there after a power cut, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

CHUNK = 1 << 20  # bytes; larger ones are no faster, and leave the caches to the training


def fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path, mode: int = 0o700) -> None:
    """Make `directory` durably; one that exists stays as it is, but is made durable too (its maker may have died)."""
    try:
        directory.mkdir()
        directory.chmod(mode)  # mkdir's own mode would pass through the umask
    except FileExistsError:
        if not directory.is_dir():
            raise
    fsync_directory(directory.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`, however often the kernel takes less than it was given."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace_file(path: Path, data: bytes, scratch: Path, mode: int = 0o600, *, sync: bool = True) -> None:
    """Put `data` at `path` durably and in one step, by way of a new file in `scratch` (same filesystem).

    Without `sync` a power cut may leave what was there before, or an empty file.
    """
    half_made = scratch / uuid4().hex
    fd = os.open(half_made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        write_all(fd, data)
        if sync:
            os.fsync(fd)
        os.rename(half_made, path)
    except OSError:
        half_made.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    if sync:
        fsync_directory(path.parent)


def copy_file(fd: int, path: Path, mode: int = 0o400) -> None:
    """Copy all of `fd`, from its beginning, to the new file `path`, and sync its bytes (not its directory)."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        for chunk in chunks(fd):
            write_all(out, chunk)
        os.fsync(out)
    finally:
        os.close(out)


def same_bytes(first: int, second: int) -> bool:
    """Whether the files of two descriptors hold the same bytes."""
    # Compared whole, a hundred times faster than by views: behind a short read both have what was equal before.
    one, other = bytearray(CHUNK), bytearray(CHUNK)
    offset = 0
    while count := os.preadv(first, [one], offset):
        if os.preadv(second, [memoryview(other)[:count]], offset) != count or one != other:
            return False
        offset += count
    return not os.preadv(second, [other], offset)


def chunks(fd: int, size: int = CHUNK) -> Iterator[memoryview]:
    """The bytes of `fd` from its beginning, without moving its position. A chunk is valid until the next one."""
    buffer = bytearray(size)
    view = memoryview(buffer)
    offset = 0
    while count := os.preadv(fd, [buffer], offset):
        yield view[:count]
        offset += count
