"""Which file of one checkpoint is which of another. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

_NUMBER = re.compile(r"\d+")


def paired(before: Mapping[str, Hashable], after: Mapping[str, Hashable]) -> dict[str, str]:
    """For each path of `before` that has one, the path of `after` that it became. Values: what the files hold.

    Equal paths belong together; then, of what is left, equal contents, names that differ in their numbers alone
    (ckpt_100.pt, ckpt_200.pt), and the last two that are left alone on either side.
    """
    pairs = {path: path for path in before if path in after}
    ways: Sequence[tuple[Callable[[str], Hashable], Callable[[str], Hashable]]] = (
        (before.__getitem__, after.__getitem__),
        (_without_numbers, _without_numbers),
        (lambda path: None, lambda path: None),
    )
    for key_before, key_after in ways:
        there = {key_after(path): path for path in _single(set(after) - set(pairs.values()), key_after)}
        for path in _single(set(before) - set(pairs), key_before):
            if key_before(path) in there:
                pairs[path] = there[key_before(path)]
    return pairs


def _single(paths: set[str], key: Callable[[str], Hashable]) -> list[str]:
    """The paths whose key no other has, in order."""
    counts = Counter(map(key, paths))
    return sorted(path for path in paths if counts[key(path)] == 1)


def _without_numbers(path: str) -> str:
    return _NUMBER.sub("0", path)
