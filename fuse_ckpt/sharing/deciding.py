"""What follows from the parts that are there. Pure: the same parts give the same decision, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from .values import Decision, Part, Standing, Union


class Missing(Struct, frozen=True):
    """The parts of these ranks are not there yet."""

    nodes: int
    ranks: tuple[int, ...]


def decide(parts: Mapping[int, tuple[Part, str]]) -> Decision | Missing:
    """COMMIT where the parts (by rank; each with its object's digest) are all there and fit together; ABORT, with the
    reason, where they contradict each other; else what is missing."""
    raise NotImplementedError


def union_of(decision: Decision, parts: Sequence[Part]) -> Union:
    """The files of all parts as one directory; where ranks differ about a path, the lowest one's counts."""
    raise NotImplementedError


def state_of(standing: Standing) -> str:
    """In words: "partial 3/4 (missing rank 2)", "replicated", "aborted", "deleted", "local"."""
    raise NotImplementedError
