"""What two tensors of equal shape differ by, summed up over pieces of them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from fuse_ckpt.contents.arrays import raw_type
from fuse_ckpt.contents.dtypes import BITS

Array = Any  # numpy's

# Bits of exponent and of fraction, and the exponent's bias; "fnuz" types have no infinity, and NaN where -0 would be.
_EIGHT_BITS = {
    "float8_e4m3fn": (4, 3, 7),
    "float8_e4m3fnuz": (4, 3, 8),
    "float8_e5m2": (5, 2, 15),
    "float8_e5m2fnuz": (5, 2, 16),
    "float8_e8m0fnu": (8, 0, 127),
}


_TURNED = frozenset({"bfloat16", "complex32", *_EIGHT_BITS})  # types whose raw elements are not their numbers
_SMALL, _LARGE = 1e-280, 1e280  # sums of squares that have lost nothing on the way


class Tally:
    """Counts and norms, in 64-bit floats; differences are taken over the elements that are finite on both sides."""

    def __init__(self, before: str, after: str) -> None:
        self._types = before, after
        self._integers = all(raw_type(one).kind in "iu" and one not in _TURNED for one in self._types)
        self._rooms: dict[tuple[int, str], Array] = {}
        self.max_abs = 0.0
        self.nan = [0, 0]
        self.infinite = [0, 0]
        self._difference = _Norm()
        self._base = _Norm()

    @property
    def relative_l2(self) -> float | None:
        """|after - before| / |before|; None where that has no value."""
        if self._base.scale == 0:
            return None
        ratio = self._difference.value(self._base.scale) / self._base.value(self._base.scale)
        return ratio if math.isfinite(ratio) else None

    def add(self, before: Array, after: Array, weight: int = 1) -> None:
        """`before` and `after`: raw elements, of one shape. `weight`: how often they stand in the tensors."""
        with np.errstate(all="ignore"):
            first, second = self._numbers(before, 0), self._numbers(after, 1)
            if first.dtype.kind in "iu":
                self._add_integers(first, second)
            else:
                self._add_floats(first, second, weight)

    def _numbers(self, raw: Array, side: int) -> Array:
        """As integers where both sides are, else as floats of 64 bits, or complex numbers of them."""
        values = numbers(raw.ravel(), self._types[side])
        if self._integers:
            return values
        room = self._room(side, values.size, complex_=values.dtype.kind == "c")
        np.copyto(room, values)
        return room

    def _room(self, place: int, count: int, *, complex_: bool = False) -> Array:
        """Memory that is used again and again: fresh memory costs more than what is done with it."""
        kind = "c16" if complex_ else "f8"
        room = self._rooms.get((place, kind))
        if room is None or room.size < count:
            room = self._rooms[place, kind] = np.empty(count, kind)
        return room[:count]

    def _add_floats(self, first: Array, second: Array, weight: int) -> None:
        complex_ = "c" in (first.dtype.kind, second.dtype.kind)
        difference = np.subtract(second, first, out=self._room(2, first.size, complex_=complex_))
        squares = self._squares(difference), self._squares(first)
        if not all(map(math.isfinite, squares)):  # else there is nothing among them that is not finite
            kept = self._finite(first, 0, weight) & self._finite(second, 1, weight)
            difference, first = difference[kept], first[kept]
            squares = self._squares(difference), self._squares(first)
        self._add_difference(difference, first, squares)

    def _add_integers(self, first: Array, second: Array) -> None:
        if first.dtype == second.dtype:
            # Unsigned arithmetic wraps around: the larger less the smaller is right whatever the sign.
            unsigned = np.dtype(f"u{first.dtype.itemsize}")
            apart = np.maximum(first, second).view(unsigned) - np.minimum(first, second).view(unsigned)
            difference, base = apart.astype("f8"), first.astype("f8")
        else:
            base = first.astype("f8")
            difference = second.astype("f8") - base
        self._add_difference(difference, base, (self._squares(difference), self._squares(base)))

    def _squares(self, values: Array) -> float:
        """The sum of the squares. Not by BLAS: its threads would wait for each other at training's expense."""
        flat = _real(values)
        return float(np.add.reduce(np.multiply(flat, flat, out=self._room(3, flat.size))))

    def _finite(self, values: Array, side: int, weight: int) -> Array:
        finite = np.isfinite(values)
        if not finite.all():
            nan = int(np.count_nonzero(np.isnan(values)))
            self.nan[side] += weight * nan
            self.infinite[side] += weight * (values.size - int(np.count_nonzero(finite)) - nan)
        return finite

    def _add_difference(self, difference: Array, base: Array, squares: tuple[float, float]) -> None:
        if difference.size:
            self.max_abs = max(self.max_abs, float(np.abs(difference, out=self._room(3, difference.size)).max()))
            self._difference.add(difference, squares[0])
            self._base.add(base, squares[1])


class _Norm:
    """A Euclidean norm, kept as scale² · sum so that no square is lost that is too large or too small for a float."""

    def __init__(self) -> None:
        self.scale = 0.0
        self._sum = 0.0

    def add(self, values: Array, squares: float) -> None:
        """`squares`: the sum of their squares, as far as that can be trusted."""
        if _SMALL < squares < _LARGE:
            self._combine(math.sqrt(squares), 1.0)
            return
        flat = _real(values)
        largest = float(np.abs(flat).max())
        if largest == math.inf:  # a difference of two large numbers: from here on there is no norm
            self.scale = largest
        elif largest:
            self._combine(largest, float(np.add.reduce((flat / largest) ** 2)))

    def _combine(self, scale: float, total: float) -> None:
        if self.scale == math.inf:
            return
        if scale > self.scale:
            self._sum = self._sum * (self.scale / scale) ** 2 + total
            self.scale = scale
        else:
            self._sum += total * (scale / self.scale) ** 2

    def value(self, unit: float) -> float:
        """The norm, in units of `unit`."""
        return self.scale / unit * math.sqrt(self._sum)


def _real(values: Array) -> Array:
    return values.view("f8") if values.dtype.kind == "c" else values


def numbers(raw: Array, dtype: str) -> Array:
    """Raw elements as numbers that numpy knows."""
    if dtype == "bfloat16":
        return (raw.astype("u4") << 16).view("f4")
    if dtype == "complex32":
        return raw.view("f2").astype("f4").view("c8")
    if dtype in _EIGHT_BITS:
        return _table(dtype).take(raw)
    return raw


def comparable(dtype: str) -> bool:
    """Whether its elements are numbers here, and not bits only."""
    return BITS[dtype] % 8 == 0 and dtype != "float4_e2m1fn_x2"


@cache
def _table(dtype: str) -> Array:
    """The values of the 256 patterns of an eight-bit float."""
    exponent_bits, fraction_bits, bias = _EIGHT_BITS[dtype]
    pattern = np.arange(256)
    exponent = pattern >> fraction_bits & (1 << exponent_bits) - 1
    fraction = (pattern & (1 << fraction_bits) - 1) / (1 << fraction_bits)
    normal = (exponent > 0) | (fraction_bits == 0)
    values = np.ldexp(fraction + normal, np.where(normal, exponent, 1) - bias)
    if fraction_bits:
        values = np.where(pattern >> 7, -values, values)
    magnitude = pattern & 0x7F
    if dtype == "float8_e5m2":
        values[magnitude > 0x7C] = math.nan
        values[magnitude == 0x7C] = np.where(pattern[magnitude == 0x7C] >> 7, -math.inf, math.inf)
    elif dtype == "float8_e4m3fn":
        values[magnitude == 0x7F] = math.nan
    else:
        values[0xFF if dtype == "float8_e8m0fnu" else 0x80] = math.nan
    return values
