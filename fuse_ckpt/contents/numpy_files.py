"""The header of numpy's .npy format, versions 1 to 3 (numpy/lib/_format_impl.py of numpy 2.4)."""

from __future__ import annotations

import ast
import math
import struct
from collections.abc import Iterator

from msgspec import Struct

from fuse_ckpt.contents.archives import Archive
from fuse_ckpt.contents.dtypes import BITS, of_numpy, size_of
from fuse_ckpt.contents.reading import Inflating, TooMuch, Unreadable, Window
from fuse_ckpt.contents.tensors import RANK_MAX, Piece, Source, Tensor, strides_of

MAGIC = b"\x93NUMPY"
HEADER_MAX = 64 * 1024  # bytes; numpy itself refuses more than 10,000 unless it is told to trust the file


class ArrayHeader(Struct, frozen=True):
    """What an .npy file holds. `dtype` is torch's name for it, or numpy's where torch has none."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool  # the first index runs fastest
    big_endian: bool
    data_at: int  # bytes from the file's beginning

    @property
    def holds_objects(self) -> bool:
        """Whether a pickle follows instead of numbers."""
        return self.dtype not in BITS and "O" in self.dtype

    @property
    def strides(self) -> tuple[int, ...]:
        """In elements."""
        return strides_of(self.shape[::-1])[::-1] if self.fortran else strides_of(self.shape)


def array_header(window: Window | Inflating) -> ArrayHeader:
    """Raises Unreadable, TooMuch."""
    start = window.read(0, 8)
    if not start.startswith(MAGIC) or start[6] not in (1, 2, 3):
        raise Unreadable("is no array of numpy's")
    layout = struct.Struct("<H" if start[6] == 1 else "<I")
    (length,) = layout.unpack(window.read(8, layout.size))
    if length > HEADER_MAX:
        raise TooMuch("has a header longer than 64 KiB, which was not read")
    data_at = 8 + layout.size + length
    text = window.read(8 + layout.size, length).decode("utf-8" if start[6] == 3 else "latin-1")
    header = _parsed(text, data_at)
    if header.dtype in BITS and data_at + size_of(header.dtype, math.prod(header.shape)) > window.length:
        raise Unreadable("is cut off")
    return header


def _parsed(text: str, data_at: int) -> ArrayHeader:
    try:
        said = ast.literal_eval(text.strip())
        descr, fortran, shape = said["descr"], said["fortran_order"], said["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise Unreadable("has an array with a broken header") from error
    if (
        not isinstance(shape, tuple)
        or len(shape) > RANK_MAX
        or not all(type(length) is int and 0 <= length < 2**63 for length in shape)
    ):
        raise Unreadable("has an array with a broken header")
    dtype, big_endian = of_numpy(descr) if isinstance(descr, str) else (repr(descr)[:200], False)
    return ArrayHeader(dtype, shape, bool(fortran), big_endian, data_at)


def array_tensor(window: Window, source: Source) -> Tensor:
    """The one tensor of an .npy file; it has no name. Raises Unreadable, TooMuch."""
    return _tensor(array_header(window), source, "", at=0)


def archive_tensors(archive: Archive, source: Source) -> Iterator[Tensor]:
    """The arrays of an .npz file. Raises Unreadable, TooMuch."""
    for member in archive.members:
        if not member.name.endswith(".npy"):
            continue
        opened = archive.opened(member)
        name, header = member.name.removesuffix(".npy"), array_header(opened)
        if isinstance(opened, Window):
            yield _tensor(header, source, name, at=opened.start)
        else:
            yield _tensor(header, source, name, at=0, member=member.name)


def _tensor(header: ArrayHeader, source: Source, name: str, *, at: int, member: str = "") -> Tensor:
    if header.dtype not in BITS:
        return Tensor(name, source.path, (source.path,), header.dtype, header.shape, fault="has no plain numbers")
    piece = Piece(
        source, at + header.data_at, header.shape, header.strides, (0,) * len(header.shape), header.big_endian, member
    )
    return Tensor(name, source.path, (source.path,), header.dtype, header.shape, (piece,))
