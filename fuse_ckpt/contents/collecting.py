"""Finds the tensors in what a pickle would make, and names each by the way to it."""

from __future__ import annotations

from collections.abc import Iterator

from fuse_ckpt.contents.reading import TooMuch
from fuse_ckpt.contents.symbols import Dict, Made, SavedTensor

TENSORS_MAX = 500_000
VISITS_MAX = 4_000_000  # of values, each time that a way leads to one
DEPTH_MAX = 100
KEY_MAX = 500  # characters of a key that go into a name

# Attributes of torch's modules and distributed tensors that their users never see in a name.
_SILENT = frozenset({"_buffers", "_local_tensor", "_modules", "_parameters"})

_Step = tuple[str, object, int]  # name, value, depth


def tensors_in(value: object) -> Iterator[tuple[str, SavedTensor]]:
    """The tensors inside `value`, each with the keys, indices and attributes that lead to it, joined by ".".

    A tensor that is in two places comes twice. Raises TooMuch.
    """
    waiting: list[_Step] = [("", value, 0)]
    found = visits = 0
    while waiting:
        name, one, depth = waiting.pop()
        visits += 1
        if visits > VISITS_MAX:
            raise TooMuch("has values that refer to each other more often than is followed here")
        if isinstance(one, SavedTensor):
            found += 1
            if found > TENSORS_MAX:
                raise TooMuch(f"has more than {TENSORS_MAX:,} tensors")
            yield name, one
        else:
            if depth > DEPTH_MAX:
                raise TooMuch("has values that are nested more deeply than is followed here")
            inner = [(_joined(name, key), each, depth + 1) for key, each in _inside(one) if _may_hold(each)]
            waiting.extend(reversed(inner))


def _may_hold(value: object) -> bool:
    return isinstance(value, SavedTensor | Dict | list | tuple)


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name and key else name or key


def _inside(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Made):
        yield from _inside_object(value)
    elif isinstance(value, Dict):
        for key, each in value.pairs:
            yield _written(key), each
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield str(place), each


def _inside_object(made: Made) -> Iterator[tuple[str, object]]:
    for key, each in made.attributes().items():
        yield ("" if key in _SILENT else _written(key)), each
    if not isinstance(made.state, Dict):
        yield "", made.state
    for item, each in made.pairs:
        yield ("" if item is None else _written(item)), each
    yield "", made.arguments


def _written(key: object) -> str:
    if isinstance(key, str):
        return key[:KEY_MAX]
    return str(key) if isinstance(key, int | float) else "?"
