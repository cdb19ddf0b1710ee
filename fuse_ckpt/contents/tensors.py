"""A tensor of a checkpoint: what it is, and where its elements lie."""

from __future__ import annotations

import math

from msgspec import Struct

from fuse_ckpt.contents.dtypes import size_of

RANK_MAX = 64  # dimensions; torch and numpy have no more


class Source(Struct, frozen=True):
    """A file of the checkpoint: its path there, and the digest of its bytes."""

    path: str
    digest: str


class Piece(Struct, frozen=True):
    """A box of a tensor, which begins at `origin` there, and where its elements lie in a file.

    Strides are in elements. With `member`, `at` counts in the unpacked bytes of that compressed part of a zip file.
    With `saved`, a file of torch.save with the box as its only tensor lies at `at`, that many bytes long; its strides
    are its own.
    """

    source: Source
    at: int  # bytes, of the first element
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    origin: tuple[int, ...]
    big_endian: bool = False
    member: str = ""
    saved: int = 0


class Tensor(Struct, frozen=True):
    """A tensor by name. `group` is the file that it belongs to, or the index over several."""

    name: str
    group: str
    files: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    more: str = ""  # what else makes its value: the parameters of a quantization
    fault: str = ""  # why its elements cannot be read: what follows "it"

    @property
    def count(self) -> int:
        """Its elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes of its elements, however many of them share their place."""
        return size_of(self.dtype, self.count)


class Problem(Struct, frozen=True):
    """A file that could not be read: what follows its name. Not `corrupt`: it asks for more than we give."""

    path: str
    what: str
    corrupt: bool

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a tensor whose last index runs fastest, without gaps."""
    strides, stride = [], 1
    for length in reversed(shape):
        strides.append(stride)
        stride *= length
    return tuple(reversed(strides))


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """From its first element to the end of its last: the elements that a view spans."""
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
