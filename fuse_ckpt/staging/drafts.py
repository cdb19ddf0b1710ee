"""A draft while it grows: what was reported of it, and how the policy sees it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from fuse_ckpt.model import Unit
from fuse_ckpt.staging import policy
from fuse_ckpt.staging.processes import UNSEEN


class OpenFile:
    """An inode that is open for writing, under the name that it has now (None: it has none any more)."""

    def __init__(self, path: str) -> None:
        self.path: str | None = path
        self.handles = 0
        self.processes: set[int] = set()

    def renamed(self, old: str, new: str) -> None:
        if self.path == new:  # replaced
            self.path = None
        elif self.path == old:
            self.path = new
        elif self.path is not None and self.path.startswith(old + "/"):
            self.path = new + self.path[len(old) :]

    def exchanged(self, one: str, other: str) -> None:
        path = self.path
        if path is None:
            return
        for here, there in ((one, other), (other, one)):
            if path == here or path.startswith(here + "/"):
                self.path = there + path[len(here) :]

    def removed(self, path: str) -> None:
        if self.path == path:
            self.path = None


class Surroundings(Protocol):
    """What a draft asks of the area that it is in."""

    def open_in(self, unit: Unit) -> Iterator[OpenFile]: ...

    def has_exited(self, process: int) -> bool: ...


class Draft:
    """The files that will become one checkpoint, as far as they are known. Times are the area's clock's."""

    def __init__(self, unit: Unit, now: float) -> None:
        self.unit = unit
        self.last_change = now
        self.first_closed: float | None = None
        self.created_ns = 0  # wall clock of the newest close; 0: none seen by this mount
        self.newest = ""
        self.processes: set[int] = set()
        self.renamed_into_place = False
        self.hinted = False
        self.finishing = False
        self.recovered = False
        self.version = 0  # rises with every change
        self.incomplete_at = -1  # the version that was looked at and found not to be whole

    def changed(self, now: float, processes: Iterable[int]) -> None:
        self.last_change = now
        self.version += 1
        self.processes.update(processes)
        self.renamed_into_place = self.hinted = self.recovered = False

    def closed(self, now: float, newest: str) -> None:
        """A member was closed, or got its name by a rename or a link."""
        self.first_closed = self.first_closed or now
        self.created_ns = time.time_ns()
        self.newest = newest

    def view(self, area: Surroundings) -> policy.Draft:
        """The draft as the policy sees it."""
        return policy.Draft(
            unit=self.unit,
            last_change=self.last_change,
            open_writers=sum(file.handles for file in area.open_in(self.unit)),
            writer_pids=frozenset(self.processes),
            live_writers=self._live(area),
            first_closed=self.first_closed,
            newest=self.newest,
            renamed_into_place=self.renamed_into_place,
            hinted=self.hinted,
            finishing=self.finishing,
        )

    def _live(self, area: Surroundings) -> bool | None:
        if self.recovered:
            return False
        if not self.processes or UNSEEN in self.processes:
            return None
        return not all(area.has_exited(process) for process in self.processes)
