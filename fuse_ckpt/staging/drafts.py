"""A draft while it grows: what was reported of it, and how the policy sees it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from fuse_ckpt.model import Unit
from fuse_ckpt.staging import policy
from fuse_ckpt.staging.open_files import OpenFile
from fuse_ckpt.staging.processes import UNSEEN


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
        self.abandoned: str | None = None  # how one of its writers died, perhaps between two files
        self.version = 0  # rises with every change
        self.progress = 0  # rises with every change that may have made it whole
        self.incomplete_at = -1  # the progress at which it was looked at and found not to be whole

    def changed(self, now: float, processes: Iterable[int]) -> None:
        self.last_change = now
        self.version += 1
        self.progress += 1
        self.processes.update(processes)
        self.renamed_into_place = self.hinted = self.recovered = self.finishing = False

    def lost(self, now: float, *, marker: bool) -> None:
        """A name in it has gone; `marker`: one that said that it was not finished, so that it may be whole now."""
        self.last_change = now
        self.version += 1
        self.progress += marker

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
