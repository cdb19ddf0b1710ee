"""Are files of arrays whole: HDF5 (Keras), and numpy's own?"""

from __future__ import annotations

import re
import struct

from fuse_ckpt.staging.reading import read_at

NUMPY_START = b"\x93NUMPY"
HDF5_START = b"\x89HDF\r\n\x1a\n"
_USER_BLOCKS = (0, 512, 1024, 2048)  # where the superblock may begin
_SUPERBLOCK_MAX = 96  # bytes; none is longer
_HEADER_MAX = 1 << 16  # bytes of numpy's header that are read; it is a line of text
_PLAIN = re.compile(rb"'descr':\s*'[<>|=]?[biufcSUV](\d{1,9})'")
_SHAPE = re.compile(rb"'shape':\s*\(([\d,\sL]*)\)")


def fault_of_hdf5(fd: int, size: int) -> str | None:
    """Whether the file is as long as its superblock says (HDF5 File Format Specification, II.A)."""
    for start in _USER_BLOCKS:
        block = read_at(fd, _SUPERBLOCK_MAX, start)
        if block.startswith(HDF5_START):
            at, width = _end_field(block)
            end = int.from_bytes(block[at : at + width], "little")
            if len(block) < at + width:
                return "is cut off in its header"
            return f"is {size} bytes long, HDF5 says {start + end}" if start + end > size else None
    return "does not begin as an HDF5 file"


def _end_field(block: bytes) -> tuple[int, int]:
    """Place and width of the end of file address in a superblock; no width for a version that is not known."""
    version = block[8] if len(block) > 8 else 0
    width, base = (block[13:14], {0: 24, 1: 28}[version]) if version < 2 else (block[9:10], 12)
    if version > 3 or width not in (b"\x04", b"\x08", b""):
        return 0, 0
    return (base + 2 * width[0], width[0]) if width else (_SUPERBLOCK_MAX, 1)


def fault_of_numpy(fd: int, size: int) -> str | None:
    """Whether the file is as long as its header says (numpy.lib.format); an array of objects is not looked into."""
    prefix = read_at(fd, 12, 0)
    wide = len(prefix) > 6 and prefix[6] > 1
    form = struct.Struct("<I" if wide else "<H")
    if len(prefix) < 8 + form.size:
        return "is cut off in its header"
    (length,) = form.unpack_from(prefix, 8)
    header = read_at(fd, min(length, _HEADER_MAX), 8 + form.size)
    if len(header) < min(length, _HEADER_MAX):
        return "is cut off in its header"
    item, shape = _PLAIN.search(header), _SHAPE.search(header)
    if item is None or shape is None:
        return None
    count = int(item[1]) * (4 if b"U" in item[0].split(b":")[1] else 1)
    for number in shape[1].replace(b"L", b"").split(b",")[:64]:
        count *= int(number[:20]) if number.strip() else 1
    expected = 8 + form.size + length + count
    return None if expected <= size else f"is {size} bytes long, its header says {expected}"
