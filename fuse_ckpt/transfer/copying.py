"""Copying one open file to another, and the digest of what then is there. The disk shares the extents where it can."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from blake3 import blake3

_libc = ctypes.CDLL(None, use_errno=True)

_SYNC_FILE_RANGE_WRITE = 2  # begin to write, and do not wait
_FICLONE = 0x40049409  # linux/fs.h, _IOW(0x94, 9, int)
_STEP = 8 << 20  # bytes; copied, then hashed while the next ones are copied
_LEAD = 8  # steps; the more, the less the two threads wait for each other, and the more of the disk's cache is in use
_READ = 1 << 20  # bytes; read and hashed at once: they stay in the processor's cache
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
    """Copy `size` bytes of `source` to the empty file `target`; the BLAKE3-256 of what `target` then holds, in hex.

    What is hashed is what was written, read back from the page cache. A shorter source gives a shorter file.
    """
    if size and clone(source, target):
        return digest_of(target, advance)
    hasher = blake3()
    if size <= _STEP:
        _copy_range(source, target, 0, size)
        _hash_range(hasher, target, 0, size, advance)
        return hasher.hexdigest()

    def behind(at: int) -> None:
        _hash_range(hasher, target, at, _STEP, advance)
        # Whoever makes the copy durable at the end finds most of it on the disk.
        _libc.sync_file_range(target, ctypes.c_int64(at), ctypes.c_int64(_STEP), _SYNC_FILE_RANGE_WRITE)

    with ThreadPoolExecutor(1) as beside:
        _copy_steps(source, target, size, lambda at: beside.submit(behind, at))
    return hasher.hexdigest()


def digest_of(fd: int, advance: Advance = ignore) -> str:
    """BLAKE3-256 of all of `fd`, in hex."""
    hasher = blake3()
    _hash_range(hasher, fd, 0, os.fstat(fd).st_size, advance)
    return hasher.hexdigest()


def _copy_steps(source: int, target: int, size: int, behind: Callable[[int], Future[None]]) -> None:
    """Copy step by step; `behind(offset)` begins what follows the copying of a step. At most _LEAD steps wait."""
    waiting: deque[Future[None]] = deque()
    for at in range(0, size, _STEP):
        _copy_range(source, target, at, min(_STEP, size - at))
        waiting.append(behind(at))
        if len(waiting) > _LEAD:
            waiting.popleft().result()
    for step in waiting:
        step.result()


def _copy_range(source: int, target: int, at: int, count: int) -> None:
    end = at + count
    while at < end:
        try:
            copied = os.copy_file_range(source, target, end - at, at, at)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            copied = _write_at(target, os.pread(source, min(_READ, end - at), at), at)
        if copied == 0:
            return
        at += copied


def _write_at(fd: int, data: bytes, at: int) -> int:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
    return len(data)


def _hash_range(hasher: blake3, fd: int, at: int, count: int, advance: Advance) -> None:
    buffer = bytearray(min(_READ, count))
    view = memoryview(buffer)
    end = at + count
    while at < end and (got := os.preadv(fd, [view[: end - at]], at)):
        hasher.update(view[:got])
        advance(got)
        at += got
