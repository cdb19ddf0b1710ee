"""What two tensors of equal shape differ by, summed up over pieces of them."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

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


class Tally:
    """Counts and norms, in 64-bit floats; differences are taken over the elements that are finite on both sides."""

    def __init__(self, before: str, after: str) -> None:
        self._types = before, after
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
        first, second = numbers(before.ravel(), self._types[0]), numbers(after.ravel(), self._types[1])
        with np.errstate(all="ignore"):
            self._add(first, second, weight)

    def _add(self, first: Array, second: Array, weight: int) -> None:
        if first.dtype.kind in "iu" and second.dtype.kind in "iu":
            self._add_integers(first, second)
            return
        first, second = _as_floats(first), _as_floats(second)
        kept = self._finite(first, 0, weight) & self._finite(second, 1, weight)
        if not kept.all():
            first, second = first[kept], second[kept]
        self._add_difference(np.subtract(second, first), first)

    def _add_integers(self, first: Array, second: Array) -> None:
        if first.dtype == second.dtype:
            # Unsigned arithmetic wraps around: the larger less the smaller is right whatever the sign.
            unsigned = np.dtype(f"u{first.dtype.itemsize}")
            apart = np.maximum(first, second).view(unsigned) - np.minimum(first, second).view(unsigned)
            self._add_difference(apart.astype("f8"), first.astype("f8"))
        else:
            first = first.astype("f8")
            self._add_difference(second.astype("f8") - first, first)

    def _finite(self, values: Array, side: int, weight: int) -> Array:
        finite = np.isfinite(values)
        if not finite.all():
            nan = int(np.count_nonzero(np.isnan(values)))
            self.nan[side] += weight * nan
            self.infinite[side] += weight * (values.size - int(np.count_nonzero(finite)) - nan)
        return finite

    def _add_difference(self, difference: Array, base: Array) -> None:
        if difference.size:
            self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
            self._difference.add(difference)
            self._base.add(base)


class _Norm:
    """A Euclidean norm, kept as scale² · sum so that no square overflows."""

    def __init__(self) -> None:
        self.scale = 0.0
        self._sum = 0.0

    def add(self, values: Array) -> None:
        flat = values.view("f8") if values.dtype.kind == "c" else values
        largest = float(np.abs(flat).max())
        if largest == 0 or self.scale == math.inf:
            return
        if largest == math.inf:  # a difference of two large numbers: from here on there is no norm
            self.scale = largest
            return
        if largest > self.scale:
            self._sum *= (self.scale / largest) ** 2
            self.scale = largest
        scaled = flat / self.scale
        self._sum += float(scaled @ scaled)

    def value(self, unit: float) -> float:
        """The norm, in units of `unit`."""
        return self.scale / unit * math.sqrt(self._sum)


def numbers(raw: Array, dtype: str) -> Array:
    """Raw elements as numbers that numpy knows."""
    if dtype == "bfloat16":
        return (raw.astype("u4") << 16).view("f4")
    if dtype == "complex32":
        return raw.view("f2").astype("f4").view("c8")
    if dtype in _EIGHT_BITS:
        return _table(dtype)[raw]
    return raw


def comparable(dtype: str) -> bool:
    """Whether its elements are numbers here, and not bits only."""
    return BITS[dtype] % 8 == 0 and dtype != "float4_e2m1fn_x2"


def _as_floats(values: Array) -> Array:
    return values.astype("c16" if values.dtype.kind == "c" else "f8")


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
