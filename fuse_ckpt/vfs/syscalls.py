"""System calls as the working view needs them."""

from __future__ import annotations

import ctypes
import os
import time

_libc = ctypes.CDLL(None, use_errno=True)
_LEASE_TRIES, _LEASE_PAUSE = 1000, 0.0002  # seconds


def status_or_none(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def open_unleased(path: str | bytes, flags: int, dir_fd: int | None = None) -> int:
    """open(2) with O_NONBLOCK. A seal that begins in a thread has a lease on the file for microseconds, against which
    the kernel says EAGAIN: that is not for the program to see."""
    for _ in range(_LEASE_TRIES):
        try:
            return os.open(path, flags | os.O_NONBLOCK, dir_fd=dir_fd)
        except BlockingIOError:
            time.sleep(_LEASE_PAUSE)  # lets the thread go on
    return os.open(path, flags | os.O_NONBLOCK, dir_fd=dir_fd)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    if not flags:
        os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
    elif _libc.renameat2(old_fd, old, new_fd, new, flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
