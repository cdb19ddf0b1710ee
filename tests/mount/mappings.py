"""Shared mappings that hold no descriptor of their own, unlike those of the mmap module."""

from __future__ import annotations

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


class Mapping:
    """The first `size` bytes of an open file, shared and writable; the descriptor may be closed."""

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._address: int = address

    def write(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= self._size
        ctypes.memmove(self._address + offset, data, len(data))

    def close(self) -> None:
        _libc.munmap(self._address, self._size)
