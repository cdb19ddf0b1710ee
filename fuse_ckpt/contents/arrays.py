"""Elements of tensors as numpy arrays, box by box, however they lie in their files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from msgspec.structs import replace

from fuse_ckpt.contents.archives import Archive
from fuse_ckpt.contents.dtypes import BITS
from fuse_ckpt.contents.opcodes import Budget
from fuse_ckpt.contents.reading import Blobs, Inflating, Unreadable, Window
from fuse_ckpt.contents.tensors import Piece, extent
from fuse_ckpt.contents.torch_files import archive_tensors

Array = Any  # numpy's, whose types are not looked at here

Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, its shape

FILES_MAX = 32  # open at once
SPAN_MAX = 8 << 20  # bytes that are read at once for elements that do not lie side by side
SPARSE = 4  # such elements are read one by one where the bytes between them are more than this times their own

# There may be a million chunks, each a zip file of its own, of one tensor in five parts: 600 bytes, 40 opcodes.
CHUNK_DIRECTORY_MAX = 64 * 1024
CHUNK_OPCODES_MAX = 10_000

_CODES = {"float": "f", "int": "i", "uint": "u", "qint": "i", "quint": "u", "complex": "c"}


def raw_type(dtype: str, big_endian: bool = False) -> Array:
    """numpy's type for the elements of `dtype` as they lie in a file; unsigned integers where numpy has none."""
    size = BITS[dtype] // 8
    code = _CODES.get(dtype.rstrip("0123456789"), "u") if dtype not in ("bfloat16", "complex32") else "u"
    return np.dtype(f"{'>' if big_endian else '<'}{code}{size}")


class Files:
    """The blobs that are being read; a few of them stay open."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._open: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open.values():
            file.close()

    def region(self, piece: Piece, dtype: str) -> Region:
        """Where the elements of a piece can be read. Raises Unreadable, CorruptBlob, OSError."""
        window = Window.whole(self._file(piece.source.digest))
        if piece.saved:
            piece = _unwrapped(window.part(piece.at, piece.saved), piece)
        if not piece.member:
            return Region(window, piece, dtype)
        archive = Archive(window)
        member = archive.find(piece.member)
        if member is None:
            raise Unreadable("lacks a part that it had a moment ago")
        return Region(archive.opened(member), piece, dtype)

    def _file(self, digest: str) -> BinaryIO:
        file = self._open.pop(digest, None)
        if file is None:
            if len(self._open) >= FILES_MAX:
                self._open.pop(next(iter(self._open))).close()
            file = self._blobs(digest)
        self._open[digest] = file  # as the last one: the first is the one that was not used for longest
        return file


def _unwrapped(window: Window, piece: Piece) -> Piece:
    """The piece in the file of torch.save that holds it alone."""
    archive = Archive(window, CHUNK_DIRECTORY_MAX)
    tensors = list(archive_tensors(archive, piece.source, Budget(CHUNK_OPCODES_MAX)))
    if len(tensors) != 1 or tensors[0].shape != piece.shape or not tensors[0].pieces:
        raise Unreadable("has a chunk that is not what its .metadata says")
    return replace(tensors[0].pieces[0], origin=piece.origin)


class Region:
    """The elements of one piece."""

    def __init__(self, reader: Window | Inflating, piece: Piece, dtype: str) -> None:
        self.shape = piece.shape
        self.strides = piece.strides
        self._reader = reader
        self._at = piece.at
        self._type = raw_type(dtype, piece.big_endian)
        self._room = bytearray()  # read into again and again: fresh memory costs more than what is done with it

    @property
    def extent(self) -> int:
        """The elements that it spans in its file."""
        return extent(self.shape, self.strides)

    def box(self, start: Sequence[int], shape: tuple[int, ...]) -> Array:
        """The elements of the box that begins at `start`, in the machine's own order of bytes; until the next call."""
        native = self._type.newbyteorder("=")
        offset = sum(place * stride for place, stride in zip(start, self.strides, strict=True))
        at = self._at + offset * self._type.itemsize
        if self._is_dense(shape, self.strides):
            return self._view(shape, at, self.strides).astype(native, copy=False)
        out = np.empty(shape, native)
        self._fill(out, at, self.strides)
        return out

    def _is_dense(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
        """Whether the elements lie so close together that all between the first and the last is read at once."""
        span, count = extent(shape, strides), math.prod(shape)
        return span <= SPARSE * count and span * self._type.itemsize <= max(SPAN_MAX, count * self._type.itemsize)

    def _view(self, shape: tuple[int, ...], at: int, strides: tuple[int, ...]) -> Array:
        size = self._type.itemsize
        length = extent(shape, strides) * size
        if len(self._room) < length:
            self._room = bytearray(length)
        self._reader.read_into(at, memoryview(self._room)[:length])
        flat = np.frombuffer(self._room, self._type, length // size)
        return np.lib.stride_tricks.as_strided(flat, shape, [stride * size for stride in strides])

    def _fill(self, out: Array, at: int, strides: tuple[int, ...]) -> None:
        if self._is_dense(out.shape, strides):
            out[...] = self._view(out.shape, at, strides)
            return
        widest = max(range(out.ndim), key=lambda axis: (out.shape[axis] - 1) * strides[axis])
        rest = (strides[widest], *strides[:widest], *strides[widest + 1 :])
        for place in range(out.shape[widest]):
            inner = np.moveaxis(out, widest, 0)[place : place + 1]
            self._fill(inner, at + place * strides[widest] * self._type.itemsize, rest)


def boxes(
    shape: Sequence[int], strides: Sequence[int], limit: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a box of `shape` into boxes of at most `limit` elements, (start, shape) each, that follow the strides."""
    if 0 in shape:
        return
    order = sorted(range(len(shape)), key=lambda axis: strides[axis])
    steps = list(shape)
    room = limit
    for axis in order:
        steps[axis] = max(1, min(shape[axis], room))
        room //= steps[axis]
    counts = [-(-length // step) for length, step in zip(shape, steps, strict=True)]
    for number in range(math.prod(counts)):
        start, rest = [0] * len(shape), number
        for axis in order:
            rest, place = divmod(rest, counts[axis])
            start[axis] = place * steps[axis]
        yield tuple(start), tuple(map(min, steps, map(int.__sub__, shape, start)))
