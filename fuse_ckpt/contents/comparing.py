"""What two checkpoints differ by: their files, their tensors, and how far changed tensors are apart.

What has the same digest is the same and is not read. Tensors are read in boxes, so memory does not depend on sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.contents.dtypes import BITS
from fuse_ckpt.contents.listing import look
from fuse_ckpt.contents.pairing import paired
from fuse_ckpt.contents.reading import BROKEN, Blobs, TooMuch, Unreadable
from fuse_ckpt.contents.tensors import Piece, Problem, Tensor
from fuse_ckpt.model import Entry, Kind

if TYPE_CHECKING:
    from fuse_ckpt.contents.arrays import Array, Files, Region

Progress = Callable[[int, int], None]  # bytes done, bytes in all

BOX = 1 << 16  # elements that are compared at once: 512 KiB as 64-bit floats, which stay in a core's cache
OVERLAPS_MAX = 1_000_000  # pairs of chunks that are looked at where two checkpoints are cut differently
REPEATS_MAX = 1024  # times that a view may use each of its elements


class Change(StrEnum):
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    UNKNOWN = "not compared"


class FileChange(Struct, frozen=True):
    """A file of either checkpoint: its path and size before and after, None where it is not there."""

    change: Change
    before: str | None
    after: str | None
    size_before: int | None
    size_after: int | None


class Distance(Struct, frozen=True):
    """How far two tensors of one shape are apart, over the elements that are finite in both."""

    max_abs: float
    relative_l2: float | None  # |after - before| / |before|; None where before is 0
    nan: tuple[int, int]
    infinite: tuple[int, int]


class TensorChange(Struct, frozen=True):
    """A tensor of either checkpoint, as it was before and after."""

    change: Change
    name: str
    before: Tensor | None
    after: Tensor | None
    distance: Distance | None = None
    note: str = ""
    was_read: bool = False


class Comparison(Struct, frozen=True):
    files: tuple[FileChange, ...]
    tensors: tuple[TensorChange, ...]
    problems: tuple[Problem, ...]  # files of either one that could not be looked into

    @property
    def identical(self) -> bool:
        """Whether the same files hold the same bytes."""
        return all(file.change is Change.UNCHANGED for file in self.files)


def compare(
    before: Iterable[Entry], after: Iterable[Entry], blobs: Blobs, progress: Progress | None = None
) -> Comparison:
    """Compare two checkpoints by their entries. Raises CorruptBlob, OSError."""
    old, new = _files(before), _files(after)
    names = paired({path: old[path].digest for path in old}, {path: new[path].digest for path in new})
    first, second = look(old.values(), blobs), look(new.values(), blobs)
    pairs = _tensor_pairs(first.tensors, second.tensors, names)
    return Comparison(
        tuple(_file_changes(old, new, names)),
        tuple(_tensor_changes(pairs, blobs, progress)),
        (*first.problems, *second.problems),
    )


def _files(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {entry.path: entry for entry in entries if entry.kind is Kind.FILE}


def _file_changes(
    before: Mapping[str, Entry], after: Mapping[str, Entry], names: Mapping[str, str]
) -> Iterator[FileChange]:
    for path, entry in sorted(before.items()):
        other = after[names[path]] if path in names else None
        if other is None:
            yield FileChange(Change.REMOVED, path, None, entry.size, None)
        else:
            change = Change.UNCHANGED if entry.digest == other.digest else Change.CHANGED
            yield FileChange(change, path, other.path, entry.size, other.size)
    for path in sorted(set(after) - set(names.values())):
        yield FileChange(Change.ADDED, None, path, None, after[path].size)


_Pair = tuple[Tensor | None, Tensor | None]


def _tensor_pairs(before: Sequence[Tensor], after: Sequence[Tensor], names: Mapping[str, str]) -> list[_Pair]:
    groups = paired(dict.fromkeys((t.group for t in before), ""), dict.fromkeys((t.group for t in after), ""))
    groups |= {path: to for path, to in names.items() if path in groups}
    there = {(tensor.group, tensor.name): tensor for tensor in after}
    pairs: list[_Pair] = []
    for tensor in before:
        pairs.append((tensor, there.pop((groups.get(tensor.group, tensor.group), tensor.name), None)))
    return [*pairs, *((None, tensor) for tensor in there.values())]


def _tensor_changes(pairs: Sequence[_Pair], blobs: Blobs, progress: Progress | None) -> Iterator[TensorChange]:
    from fuse_ckpt.contents.arrays import Files

    total = sum(first.size for first, second in pairs if first and second)
    done = 0

    def advance(count: int) -> None:
        if progress is not None:
            progress(done + count, total)

    with Files(blobs) as files:
        for first, second in pairs:
            if first is not None and second is not None:
                yield _compared(first, second, files, advance)
                done += first.size
                advance(0)
            elif first is not None:
                yield TensorChange(Change.REMOVED, first.name, first, None)
            elif second is not None:
                yield TensorChange(Change.ADDED, second.name, None, second)


def _compared(first: Tensor, second: Tensor, files: Files, advance: Callable[[int], None]) -> TensorChange:
    def result(change: Change, distance: Distance | None = None, note: str = "", read: bool = False) -> TensorChange:
        return TensorChange(change, first.name, first, second, distance, note, read)

    if first.shape != second.shape:
        return result(Change.CHANGED, note="has another shape")
    fault = first.fault or second.fault
    if fault:
        return result(Change.UNKNOWN, note=fault)
    same_kind = (first.dtype, first.more) == (second.dtype, second.more)
    if same_kind and [_place(piece) for piece in first.pieces] == [_place(piece) for piece in second.pieces]:
        return result(Change.UNCHANGED)
    try:
        if same_kind and _equal(first, second, files, advance):
            return result(Change.UNCHANGED, read=True)
        return result(Change.CHANGED, _distance(first, second, files, advance), _kind_note(first, second), read=True)
    except Unreadable as error:
        return result(Change.UNKNOWN, note=str(error))
    except BROKEN:
        return result(Change.UNKNOWN, note="is cut off or broken")


def _place(piece: Piece) -> object:
    """What makes two pieces the same bytes, whatever their file is called."""
    return (piece.source.digest, *(getattr(piece, field) for field in piece.__struct_fields__ if field != "source"))


def _kind_note(first: Tensor, second: Tensor) -> str:
    if first.dtype != second.dtype:
        return "is of another type"
    return "is quantized otherwise" if first.more != second.more else ""


def _equal(first: Tensor, second: Tensor, files: Files, advance: Callable[[int], None]) -> bool:
    read = 0
    for before, after, _ in _boxes(_of_bits(first), _of_bits(second), files):
        kind = "u8" if before.nbytes % 8 == 0 else "u1"
        if not (before.ravel().view(kind) == after.ravel().view(kind)).all():
            return False
        read += before.nbytes
        advance(read)
    return True


def _of_bits(tensor: Tensor) -> Tensor:
    """A tensor whose elements are no whole bytes, as bytes."""
    if BITS[tensor.dtype] % 8 == 0:
        return tensor
    pieces = tuple(replace(piece, shape=(tensor.size,), strides=(1,), origin=(0,)) for piece in tensor.pieces)
    return replace(tensor, dtype="uint8", shape=(tensor.size,), pieces=pieces)


def _distance(first: Tensor, second: Tensor, files: Files, advance: Callable[[int], None]) -> Distance | None:
    from fuse_ckpt.contents.tallies import Tally, comparable

    if not comparable(first.dtype) or not comparable(second.dtype):
        return None
    tally = Tally(first.dtype, second.dtype)
    read = 0
    for before, after, weight in _boxes(first, second, files):
        tally.add(before, after, weight)
        read += before.nbytes
        advance(read)
    nan, infinite = tally.nan, tally.infinite
    return Distance(tally.max_abs, tally.relative_l2, (nan[0], nan[1]), (infinite[0], infinite[1]))


def _boxes(first: Tensor, second: Tensor, files: Files) -> Iterator[tuple[Array, Array, int]]:
    """Pairs of arrays of the same elements in both, which together are all of them; and how often each stands there.

    Raises Unreadable, TooMuch, CorruptBlob, OSError.
    """
    seen = 0
    for one, other in _pairs_of_pieces(first.pieces, second.pieces):
        for before, after, weight in _boxes_of_pieces(one, other, first.dtype, second.dtype, files):
            yield before, after, weight
            seen += before.size * weight
    if seen < first.count:
        raise Unreadable("lacks a part of its elements")


def _boxes_of_pieces(
    one: Piece, other: Piece, dtype: str, other_dtype: str, files: Files
) -> Iterator[tuple[Array, Array, int]]:
    from fuse_ckpt.contents.arrays import boxes

    a, b = files.region(one, dtype), files.region(other, other_dtype)
    origin = tuple(map(max, one.origin, other.origin))
    ends = (min(o + n, p + m) for o, n, p, m in zip(one.origin, one.shape, other.origin, other.shape, strict=True))
    shape, weight = _folded(tuple(end - start for end, start in zip(ends, origin, strict=True)), a, b)
    for start, size in boxes(shape, a.strides, BOX):
        place = tuple(map(int.__add__, origin, start))
        in_one, in_other = map(int.__sub__, place, one.origin), map(int.__sub__, place, other.origin)
        yield a.box(tuple(in_one), size), b.box(tuple(in_other), size), weight


def _folded(shape: tuple[int, ...], a: Region, b: Region) -> tuple[tuple[int, ...], int]:
    """`shape` with 1 for each dimension along which both repeat one element, and how often they do.

    Raises TooMuch where elements repeat in another way more than REPEATS_MAX times: a small file may claim any size.
    """
    folded, weight = list(shape), 1
    for axis, (stride_a, stride_b) in enumerate(zip(a.strides, b.strides, strict=True)):
        if stride_a == stride_b == 0 and folded[axis] > 1:
            weight *= folded[axis]
            folded[axis] = 1
    if math.prod(folded) > REPEATS_MAX * max(a.extent, b.extent):
        raise TooMuch("repeats its elements too often to be compared")
    return tuple(folded), weight


def _pairs_of_pieces(first: Sequence[Piece], second: Sequence[Piece]) -> Iterator[tuple[Piece, Piece]]:
    """The pieces of two tensors that have elements in common."""
    there = {(piece.origin, piece.shape): piece for piece in second}
    if len(first) == len(there) and all((piece.origin, piece.shape) in there for piece in first):
        yield from ((piece, there[piece.origin, piece.shape]) for piece in first)
        return
    if len(first) * len(second) > OVERLAPS_MAX:
        raise TooMuch("is cut into too many chunks of another size")
    yield from ((one, other) for one in first for other in second if _overlap(one, other))


def _overlap(one: Piece, other: Piece) -> bool:
    sides = zip(one.origin, one.shape, other.origin, other.shape, strict=True)
    return all(max(o, p) < min(o + n, p + m) for o, n, p, m in sides)
