"""Small reads at chosen places of an open file."""

from __future__ import annotations

import os
import struct


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset`; fewer only at the file's end."""
    pieces = []
    while length > 0:
        piece = os.pread(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def number_at(fd: int, form: struct.Struct, offset: int) -> int | None:
    """The one number that `form` describes; None where the file ends before it."""
    data = read_at(fd, form.size, offset)
    return int(form.unpack(data)[0]) if len(data) == form.size else None
