"""Two system calls as the working view needs them."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def status_or_none(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    if not flags:
        os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
    elif _libc.renameat2(old_fd, old, new_fd, new, flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
