"""Reading ahead of programs that read a file from its beginning to its end.

Under passthrough the kernel reads for the program, but does not pass its posix_fadvise(2) on to the file behind: who
maps a cold file, as safetensors does, is left with the disk's default window. So the daemon reads what comes next. It
sees no read of the program's, but what the page cache holds (cachestat(2)): a place behind what was read is the
tripwire; once something is there, the program has come near, and the kernel has read on for it. Who reads a header, or
here and there, never trips it, and who stops has had 64 MiB read in vain at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import mmap
import os
from pathlib import Path

import trio

_log = logging.getLogger(__name__)

_LEAST = 32 << 20  # bytes of a file that is worth it
_BEGIN = 1 << 20  # bytes: a header is no reading on
_LENGTHS = range(8 << 20, 64 << 20)  # bytes read ahead at a time, at first and at last
_DEFAULT_WINDOW = 128 << 10  # bytes: the kernel's own, VM_READAHEAD_PAGES
_WIRE = 64 << 10  # bytes
_PIECE = 4 << 20  # bytes between two looks for what is not in memory
_FILES = 16  # followed at once
_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two looks at a wire
_PATIENCE = 3.0  # seconds from one wire to the next: who reads 32 MiB more slowly needs no reading ahead
_CACHESTAT = 451  # the number of the system call, the same on all architectures but Alpha

_MADV_POPULATE_READ = 22  # <linux/mman.h>, since Linux 5.14
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class ReadAhead:
    """All files that are followed, while `run` runs."""

    def __init__(self) -> None:
        self._following: set[tuple[int, int]] = set()
        self._send, self._receive = trio.open_memory_channel[int](math.inf)

    def opened(self, fd: int) -> None:
        """A file was opened to be read, which the kernel does by itself from here on."""
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        if status.st_size < _LEAST or key in self._following or len(self._following) >= _FILES:
            return
        with contextlib.suppress(OSError):  # too many open files: it can do without
            self._send.send_nowait(os.dup(fd))
            self._following.add(key)

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                async for fd in self._receive:
                    nursery.start_soon(self._follow, fd)
        finally:
            while self._receive.statistics().current_buffer_used:
                os.close(self._receive.receive_nowait())

    async def _follow(self, fd: int) -> None:
        status = os.fstat(fd)
        try:
            await follow(fd, status.st_size, window_of(status.st_dev))
        except OSError as exc:
            _log.debug("not read ahead: %s", exc)
        finally:
            self._following.discard((status.st_dev, status.st_ino))
            os.close(fd)


async def follow(fd: int, size: int, window: int) -> None:
    """Read ahead of whoever reads the file `fd` of `size` bytes; ends at its end, or when nobody reads on.

    `window`: bytes that the kernel reads ahead by itself. Raises OSError where the page cache cannot be looked at.
    """
    wire, length = await trio.to_thread.run_sync(_first_missing, fd, max(window, _BEGIN), size), _LENGTHS.start
    while wire < size and await _is_tripped(fd, wire):
        wire = await trio.to_thread.run_sync(_bring, fd, wire, min(wire + length, size), size)
        length = min(2 * length, _LENGTHS.stop)


async def _is_tripped(fd: int, wire: int) -> bool:
    """Wait until somebody has read at `wire`; False: for long nobody has, or the file has gone."""
    pause, waited = _PAUSE, 0.0  # not by the clock: a machine that stands still reads nothing either
    while waited < _PATIENCE and os.fstat(fd).st_nlink:
        if cached(fd, wire, _WIRE):
            return True
        await trio.sleep(pause)
        waited += pause
        pause = min(pause * 1.2, _LONGEST_PAUSE)
    return False


def _bring(fd: int, start: int, stop: int, size: int) -> int:
    """Have a part of a file read as a program that maps it would; return the next place for a wire.

    So the kernel reads ahead in large folios, with half of WILLNEED's processor time, and leaves its mark near the end:
    who comes to that makes it read on, which trips the wire, and does not wait.
    """
    address = _libc.mmap(None, stop - start, mmap.PROT_READ, mmap.MAP_PRIVATE, fd, start)
    if address == _MAP_FAILED:
        raise _error()
    try:
        if _libc.madvise(address, stop - start, _MADV_POPULATE_READ) < 0:
            raise _error()
    finally:
        _libc.munmap(address, stop - start)
    return _first_missing(fd, stop, size)


def _first_missing(fd: int, offset: int, size: int) -> int:
    """The next place for a wire: where nothing is in memory; `size` or more: there is none."""
    while offset < size and cached(fd, offset, _WIRE):
        offset += _PIECE
    return offset


def cached(fd: int, offset: int, length: int) -> int:
    """How many pages of a part of a file are in memory. Raises OSError (ENOSYS before Linux 6.5)."""
    counts = (ctypes.c_uint64 * 5)()  # struct cachestat of <linux/mman.h>; the first is nr_cache
    part = (ctypes.c_uint64 * 2)(offset, length)
    if _libc.syscall(_CACHESTAT, fd, ctypes.byref(part), ctypes.byref(counts), 0) < 0:
        raise _error()
    return int(counts[0])


def window_of(device: int) -> int:
    """Bytes that the kernel reads ahead by itself from a disk, as it is set."""
    try:
        set_to = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
    except FileNotFoundError:  # of a partition: its disk's number is another
        return _DEFAULT_WINDOW
    return max(int(set_to) << 10, _DEFAULT_WINDOW)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
