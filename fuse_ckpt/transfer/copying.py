"""Copying one open file to another, and the digest of what then is there. The disk shares the extents where it can."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from threading import Lock

from blake3 import blake3

_libc = ctypes.CDLL(None, use_errno=True)

_SYNC_FILE_RANGE_WRITE = 2  # begin to write, and do not wait
_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
_STEP = 8 << 20  # bytes
_PIECE = 256 << 10  # bytes; they stay in the processor's own cache from the reading over the hashing to the writing
_UNABLE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)

Advance = Callable[[int], None]  # told of bytes that are done
Progress = Callable[[int, int], None]  # told of the bytes done so far, and of the bytes in all


def ignore(count: int) -> None:
    """An `Advance` for whom nobody waits."""


def counter(total: int, progress: Progress | None) -> Advance:
    """An `Advance`, for any thread, that tells `progress` how far `total` bytes have come."""
    done = 0
    turn = Lock()

    def advance(count: int) -> None:
        nonlocal done
        with turn:
            done += count
            if progress is not None:
                progress(done, total)

    return advance


def clone(source: int, target: int) -> bool:
    """Have the empty file `target` share all of `source`'s extents; False where the disk, or these two, cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        return False
    return True


def copy(source: int, target: int, size: int, advance: Advance = ignore) -> str:
    """Copy `size` bytes of `source` to the empty file `target`; the BLAKE3-256 of what was written, in hex.

    Where the extents are shared, `target` is read back and hashed. A shorter source gives a shorter file.
    """
    if size and clone(source, target):
        return digest_of(target, advance)
    hasher = blake3()
    begun = 0  # up to where the disk has been told to write
    for at, data in _read(source, size):
        hasher.update(data)
        write_at(target, data, at)
        advance(len(data))
        end = at + len(data)
        if end - begun >= _STEP:
            # Whoever makes the copy durable at the end finds most of it on the disk.
            _libc.sync_file_range(target, ctypes.c_int64(begun), ctypes.c_int64(end - begun), _SYNC_FILE_RANGE_WRITE)
            begun = end
    return hasher.hexdigest()


def digest_of(fd: int, advance: Advance = ignore) -> str:
    """BLAKE3-256 of all of `fd`, in hex."""
    hasher = blake3()
    for _, data in _read(fd, os.fstat(fd).st_size):
        hasher.update(data)
        advance(len(data))
    return hasher.hexdigest()


def write_at(fd: int, data: bytes | memoryview, at: int) -> None:
    """Write all of `data` at the offset `at`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count


def _read(fd: int, size: int) -> Iterator[tuple[int, memoryview]]:
    """The first `size` bytes of `fd`, with their offsets. A piece is valid until the next one."""
    view = memoryview(bytearray(min(_PIECE, size)))
    at = 0
    while at < size and (count := os.preadv(fd, [view[: size - at]], at)):
        yield at, view[:count]
        at += count
