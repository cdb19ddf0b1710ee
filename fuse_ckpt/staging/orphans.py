"""Files that stay open for writing although all who opened them have exited: a child inherited the descriptor.

Whoever holds one may not even know of it (torch.save opens without O_CLOEXEC, and a worker outlives its trainer), and
its unit must not wait for ever. After ten minutes in which nothing was written the file counts as closed. It may still
be written after that, so it is copied into its checkpoint, not linked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from msgspec import Struct

from fuse_ckpt.model import InodeKey
from fuse_ckpt.staging.open_files import OpenFile
from fuse_ckpt.staging.worktree import WorkTree

IDLE = 600.0  # seconds
_LOOK = 60.0  # seconds between two looks: under passthrough nobody tells of a write


class Orphan(Struct):
    """An open file, how it was when it was last seen to change, when that was, and when it is to be looked at again."""

    file: OpenFile
    state: tuple[int, int] | None
    since: float
    when: float


class Orphans:
    """All of them, by inode."""

    def __init__(self, tree: WorkTree) -> None:
        self._tree = tree
        self._orphans: dict[InodeKey, Orphan] = {}

    def add(self, file: OpenFile, now: float) -> None:
        self._orphans[file.key] = Orphan(file, self.state(file), now, now + _LOOK)

    def next_look(self) -> float:
        """When the first is to be looked at; infinity if there is none."""
        return min((orphan.when for orphan in self._orphans.values()), default=math.inf)

    def idle(self, now: float) -> Iterator[OpenFile]:
        """Those that nobody has written for so long that they count as closed; each is told once."""
        for orphan in [orphan for orphan in self._orphans.values() if orphan.when <= now]:
            file, state = orphan.file, self.state(orphan.file)
            orphan.when = now + _LOOK
            if file.handles == 0 or not file.is_orphan or state is None:
                del self._orphans[file.key]
            elif state != orphan.state:
                orphan.state, orphan.since = state, now
            elif now - orphan.since >= IDLE:
                del self._orphans[file.key]
                yield file

    def state(self, file: OpenFile) -> tuple[int, int] | None:
        """Size and mtime (ns) of the file at its name; None where it has none any more."""
        found = None if file.path is None else self._tree.look(file.path)
        return None if found is None or found.key != file.key else (found.size, found.mtime_ns)
