"""Files that were closed unchanged but may yet be changed by a mapping, which under passthrough outlives the close.

The kernel closes a backing file a moment after it tells of the release, so whether a mapping is left is asked later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from msgspec import Struct

from fuse_ckpt.model import InodeKey
from fuse_ckpt.staging.worktree import WorkTree

_FIRST_LOOK, _NEXT_LOOK = 0.05, 1.0  # seconds


class Doubt(Struct):
    """A file as it was at its close, and when it is to be looked at again."""

    path: str
    key: InodeKey
    size: int
    mtime_ns: int
    when: float


class Doubts:
    """All of them, by path."""

    def __init__(self, tree: WorkTree) -> None:
        self._tree = tree
        self._doubts: dict[str, Doubt] = {}

    def add(self, path: str, key: InodeKey, size: int, mtime_ns: int, now: float) -> None:
        self._doubts[path] = Doubt(path, key, size, mtime_ns, now + _FIRST_LOOK)

    def next_look(self) -> float:
        """When the first is to be looked at; infinity if there is none."""
        return min((doubt.when for doubt in self._doubts.values()), default=math.inf)

    def retimed(self, key: InodeKey, before: int, after: int) -> None:
        """A program set the file's mtime (nanoseconds): that is no change of its bytes."""
        for doubt in self._doubts.values():
            if doubt.key == key and doubt.mtime_ns == before:
                doubt.mtime_ns = after

    def changed(self, now: float) -> Iterator[str]:
        """The paths of those that nobody can write any more, and that were changed since their close."""
        for doubt in [doubt for doubt in self._doubts.values() if doubt.when <= now]:
            found = self._tree.look(doubt.path)
            if found is None or found.key != doubt.key:
                del self._doubts[doubt.path]
            elif self._tree.is_written(found):
                doubt.when = now + _NEXT_LOOK
            else:
                del self._doubts[doubt.path]
                if (found.size, found.mtime_ns) != (doubt.size, doubt.mtime_ns):
                    yield doubt.path
