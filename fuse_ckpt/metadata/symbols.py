"""What stands on the stack while a pickle's opcodes are walked: symbols of values, never the values.

All of them are cheap, for a pickle may be made to hold millions; none is compared by what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

_ROW_MAX = 8  # parts of a tuple that are kept: a tensor's, the longest of use, has seven
_ROW_DEPTH_MAX = 4  # of tuples inside tuples


class Opaque(Enum):
    """A value of which only one thing is known."""

    PLAIN = "no tensor inside"
    TENSORS = "tensors inside"


class Global(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str


class Row:
    """A short tuple."""

    __slots__ = ("depth", "parts", "tensors")

    def __init__(self, parts: tuple[object, ...]) -> None:
        self.parts = tuple(one_of([part]) if _depth(part) >= _ROW_DEPTH_MAX else part for part in parts)
        self.depth = 1 + max(map(_depth, self.parts), default=0)
        self.tensors = any(map(holds_tensors, parts))


class Storage(NamedTuple):
    """Where tensors' numbers lie: the zip member's name below `data/`, and the storage's class ("FloatStorage")."""

    key: str
    kind: str


class Scalar(NamedTuple):
    """A tensor that is one number: the `offset`-th of its storage."""

    storage: Storage
    offset: int


class Outline:
    """A dictionary: its items that have a string as key, those that have an object as key, and whether tensors are
    under those or other keys."""

    __slots__ = ("items", "keyed", "tensors", "unnamed_tensors")

    def __init__(self) -> None:
        self.items: dict[str, object] = {}
        self.keyed: list[tuple[Instance, object]] = []
        self.tensors = False
        self.unnamed_tensors = False

    def put(self, key: object, value: object) -> None:
        held = holds_tensors(value)
        self.tensors |= held
        if type(key) is str:
            self.items[key] = value
            return
        self.unnamed_tensors |= held
        if isinstance(key, Instance):
            self.keyed.append((key, value))


class Instance:
    """What a call of `function` with `arguments` would make, and the attributes that it is then given."""

    __slots__ = ("arguments", "function", "state", "tensors")

    def __init__(self, function: Global, arguments: object) -> None:
        self.function = function
        self.arguments = arguments
        self.state: Outline | None = None
        self.tensors = holds_tensors(arguments)

    def build(self, state: object) -> None:
        self.tensors |= holds_tensors(state)
        if isinstance(state, Outline):
            self.state = state

    def attribute(self, name: str) -> object:
        """The attribute's symbol; None where it has none of that name."""
        return None if self.state is None else self.state.items.get(name)


def holds_tensors(value: object) -> bool:
    if isinstance(value, Outline | Instance | Row):
        return value.tensors
    return value is Opaque.TENSORS or type(value) is Scalar


def one_of(values: Iterable[object]) -> Opaque:
    return Opaque.TENSORS if any(map(holds_tensors, values)) else Opaque.PLAIN


def _depth(value: object) -> int:
    return value.depth if isinstance(value, Row) else 0


def row(parts: list[object]) -> object:
    """The symbol of a tuple; one that is long, or of nothing but numbers, is of no use, unless it is empty."""
    if not parts:
        return EMPTY
    if len(parts) > _ROW_MAX or all(type(part) in (int, float) for part in parts):
        return one_of(parts)
    return Row(tuple(parts))


def storage(named: object) -> object:
    """torch names a storage by ("storage", its class, its key, where it was, how many numbers it holds)."""
    parts = named.parts if isinstance(named, Row) else ()
    if len(parts) < 3 or parts[0] != "storage" or not isinstance(parts[1], Global) or type(parts[2]) is not str:
        return Opaque.PLAIN
    return Storage(parts[2], parts[1].name)


def tensor(arguments: object) -> object:
    """The symbol of a tensor that is made of (storage, offset, size, …), or of another tensor."""
    parts = arguments.parts if isinstance(arguments, Row) else ()
    first = parts[0] if parts else None
    if isinstance(first, Scalar):
        return first
    if isinstance(first, Storage) and len(parts) > 2 and type(parts[1]) is int:
        size = parts[2]
        if isinstance(size, Row) and not size.parts:
            return Scalar(first, parts[1])
    return Opaque.TENSORS


def rebuilds_tensor(function: Global) -> bool:
    return function.name.startswith("_rebuild") and function.module in ("torch._utils", "torch._tensor")


EMPTY = Row(())
