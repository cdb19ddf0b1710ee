"""Drafts while they grow: what was reported of them, how the policy sees them, and which is due first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from fuse_ckpt.model import Unit
from fuse_ckpt.staging import policy
from fuse_ckpt.staging.policy import QuietPeriods
from fuse_ckpt.staging.processes import UNSEEN
from fuse_ckpt.staging.recent import Recent


class Draft:
    """The files that will become one checkpoint, as far as they are known. Times are the area's clock's."""

    def __init__(self, unit: Unit, now: float, amends: Recent | None = None) -> None:
        self.unit = unit
        self.last_change = now
        self.began_ns = time.time_ns()  # wall clock
        self.amends = amends  # what it only adds files to, unless it does more
        self.first_closed: float | None = None
        self.created_ns = 0  # wall clock of the newest close; 0: none seen by this mount
        self.newest = ""
        self.writers: set[int] = set()  # that have not exited; UNSEEN among them: nobody knows
        self.exited = 0  # how many have; 2 stands for more
        self.appends = 0
        self.renamed_into_place = False
        self.unmarked = False
        self.hinted = False
        self.finishing = False
        self.recovered = False
        self.abandoned: str | None = None  # how a writer died, perhaps between two files
        self.deaths: dict[int, str] = {}  # of writers that were killed: whether they had more to write is not known yet
        self.described: set[str] = set()  # directories whose .metadata came after all that it describes
        self.version = 0  # rises with every change, and with every open that may become one
        self.progress = 0  # rises with every change that may have made it whole
        self.incomplete_at = -1  # the progress at which it was looked at and found not to be whole
        self.fault = ""  # what it lacked then

    def changed(self, now: float, processes: Iterable[int]) -> None:
        self.last_change = now
        self.version += 1
        self.progress += 1
        self.writers.update(processes)
        self.renamed_into_place = self.unmarked = self.hinted = self.recovered = self.finishing = False

    def lost(self, now: float, *, marker: bool) -> None:
        """A name in it has gone; `marker`: one that said that it was not finished, or what was wrong, so that it may
        be whole now."""
        self.last_change = now
        self.version += 1
        self.progress += marker

    def closed(self, now: float, newest: str) -> None:
        """A member was closed, or got its name by a rename or a link."""
        self.first_closed = self.first_closed or now
        self.created_ns = time.time_ns()
        self.newest = newest
        directory, _, name = newest.rpartition("/")
        if name.endswith(".distcp"):
            self.described.discard(directory)
        elif name.endswith(".metadata"):
            self.described.add(directory)

    def lost_writer(self, process: int, death: str | None) -> None:
        self.writers.discard(process)
        self.exited = min(self.exited + 1, 2)
        if death is not None:
            self.deaths[process] = death

    def view(self, open_writers: int) -> policy.Draft:
        """The draft as the policy sees it."""
        return policy.Draft(
            unit=self.unit,
            last_change=self.last_change,
            open_writers=open_writers,
            many=len(self.writers) + self.exited > 1 or UNSEEN in self.writers,
            live_writers=self._live(),
            first_closed=self.first_closed,
            newest=self.newest,
            appends=self.appends,
            renamed_into_place=self.renamed_into_place,
            unmarked=self.unmarked,
            hinted=self.hinted,
            finishing=self.finishing,
        )

    def _live(self) -> bool | None:
        if self.recovered:
            return False
        if UNSEEN in self.writers or not (self.writers or self.exited):
            return None
        return bool(self.writers)


class Drafts(Mapping[Unit, Draft]):
    """All drafts by unit. When each is due is worked out once after each change that `altered` was told of."""

    def __init__(self, periods: QuietPeriods, open_in: Callable[[Unit], int]) -> None:
        self._periods = periods
        self._open_in = open_in
        self._drafts: dict[Unit, Draft] = {}
        self._times: dict[Unit, float] = {}
        self._altered: dict[Unit, None] = {}  # in this order, which decides between those due at the same moment

    def __getitem__(self, unit: Unit) -> Draft:
        return self._drafts[unit]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._drafts)

    def __len__(self) -> int:
        return len(self._drafts)

    def begin(self, unit: Unit, now: float, amends: Recent | None = None) -> Draft:
        draft = self._drafts[unit] = Draft(unit, now, amends)
        self._altered[unit] = None
        return draft

    def drop(self, unit: Unit) -> None:
        del self._drafts[unit]
        self._altered[unit] = None

    def altered(self, unit: Unit) -> None:
        """The draft of `unit`, or what is open in it, is not as it was."""
        self._altered[unit] = None

    def view(self, draft: Draft) -> policy.Draft:
        return draft.view(self._open_in(draft.unit))

    def due(self, not_before: Mapping[Unit, float]) -> tuple[float, Unit] | None:
        """The draft that is due first and the time, on the area's clock, from which it is."""
        for unit in self._altered:
            self._times.pop(unit, None)
            draft = self._drafts.get(unit)
            when = None if draft is None else self._due(draft)
            if when is not None:
                self._times[unit] = when
        self._altered.clear()
        times = ((max(when, not_before.get(unit, when)), unit) for unit, when in self._times.items())
        return min(times, key=lambda pair: pair[0], default=None)

    def _due(self, draft: Draft) -> float | None:
        view = self.view(draft)
        if draft.incomplete_at == draft.progress and not policy.is_over(view):
            return None
        return policy.due(view, self._periods)
