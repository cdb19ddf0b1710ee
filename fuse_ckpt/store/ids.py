"""Ids of checkpoints and runs: UUIDv7, unique over all machines, in the order in which they were minted. Pure."""

from __future__ import annotations

from uuid import UUID

RAND_B = 62  # bits below the variant
RAND_A = 12  # bits between version and variant
STEP_MAX = 1 << 32  # steps are random: two copies of a store whose clocks went back must not mint the same ids


def after(newest: str | None, fresh: str, step: int) -> str:
    """`fresh`, or where that is not later than `newest` the id `step` (1 … STEP_MAX) further than `newest`."""
    if newest is None or fresh > newest:
        return fresh
    return str(_pack(_unpack(UUID(newest)) + step))


def _unpack(value: UUID) -> int:
    """The 122 bits of a UUIDv7 that are neither version nor variant."""
    number = value.int
    timestamp = number >> 80
    rand_a = number >> 64 & (1 << RAND_A) - 1
    rand_b = number & (1 << RAND_B) - 1
    return (timestamp << RAND_A | rand_a) << RAND_B | rand_b


def _pack(bits: int) -> UUID:
    rand_b = bits & (1 << RAND_B) - 1
    rand_a = bits >> RAND_B & (1 << RAND_A) - 1
    timestamp = bits >> RAND_A + RAND_B
    return UUID(int=timestamp << 80 | 7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)
