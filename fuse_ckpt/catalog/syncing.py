"""From the decisions of a shared store to the rows of its catalog.

The table is loaded first, then the decisions are read, then a version is written on top of the one that was loaded.
So no row is doubled, and none that another process has added since is taken away: whoever is outrun begins again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from random import uniform
from typing import TYPE_CHECKING

from msgspec import Struct

from fuse_ckpt.errors import Busy, Corrupt, StorageFailed, UnknownJob
from fuse_ckpt.sharing import GroupState, SharedStore
from fuse_ckpt.transfer import Access

from .rows import row_of

if TYPE_CHECKING:
    from .table import Table

TRIES = 8
PAUSE = 0.2  # seconds after the first time that another was faster; doubled each time


class Brought(Struct, frozen=True):
    """What a sync did to the table at `uri`, and how many rows it has. `problems`: decisions that cannot be read."""

    uri: str
    rows: int
    added: int = 0
    replaced: int = 0
    removed: int = 0
    made: bool = False
    problems: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.made or self.added or self.replaced or self.removed)


def sync(shared: SharedStore, access: Access, jobs: Sequence[str] = (), *, rebuild: bool = False) -> Brought:
    """Bring the catalog to exactly what the decisions say, of these `jobs` (none: of all), by one version at most.

    `rebuild`: whatever is there now, even where it cannot be read.
    Errors: StorageFailed, Corrupt (the table), UsageError (it is not ours), UnknownJob, Busy (others write all the
    time).
    """
    from .table import Outrun, Table

    shared.open()
    table = Table(access)
    for attempt in range(TRIES):
        try:
            return _sync_once(shared, table, jobs, rebuild)
        except Outrun:
            time.sleep(PAUSE * 2**attempt * uniform(0.5, 1.0))
    raise Busy(f"Others write to the catalog at {access.uri} all the time: try again.")


def append(shared: SharedStore, access: Access, groups: Iterable[tuple[str, str]]) -> int:
    """Add the rows of these groups (job, group), where there is a catalog and they are not in it; how many were new.

    Errors: as `sync`.
    """
    from .table import Outrun, Table

    shared.open()
    table, wanted = Table(access), list(groups)
    for attempt in range(TRIES):
        try:
            return _append_once(shared, table, wanted)
        except Outrun:
            time.sleep(PAUSE * 2**attempt * uniform(0.5, 1.0))
    raise Busy(f"Others write to the catalog at {access.uri} all the time: try again.")


def _sync_once(shared: SharedStore, table: Table, jobs: Sequence[str], rebuild: bool) -> Brought:
    try:
        there = table.load()
    except Corrupt:
        if not rebuild:
            raise
        shared.drop_catalog()
        there = False
    shared.problems.clear()
    wanted = _wanted(shared, table if there else None, jobs)
    problems = tuple(shared.problems)
    count = len(wanted)
    if not there or rebuild:
        write = table.replace if there else table.create
        write(_taken(wanted))
        _tidy(table, sweep=there)
        return Brought(table.uri, count, added=count, made=True, problems=problems)
    found = _compare(table, wanted, jobs)
    if found.replaced or found.removed:
        others = _others(table, jobs)  # before any is written: deltalake cannot do both at once
        table.replace([*others, *_taken(wanted)])
    elif found.fresh:
        table.append([wanted[one] for one in found.fresh])
    if found.replaced or found.removed or found.fresh:
        _tidy(table, sweep=True)
    return Brought(table.uri, table.count(), len(found.fresh), found.replaced, found.removed, problems=problems)


def _append_once(shared: SharedStore, table: Table, groups: Sequence[tuple[str, str]]) -> int:
    from . import columns

    if not table.load():
        return 0
    rows = {}
    for job, group in groups:
        standing = shared.standing(job, group)
        if standing.state is GroupState.REPLICATED and standing.decision is not None:
            rows[standing.decision.id] = columns.pack(row_of(standing.decision, shared.decision_key(job, group)))
    if not rows:
        return 0
    known = {one for one, _ in table.rows(f"id IN ({_quoted(rows)})")}
    fresh = rows.keys() - known
    if fresh:
        table.append([rows[one] for one in sorted(fresh)])
        _tidy(table, sweep=False)
    return len(fresh)


def _wanted(shared: SharedStore, table: Table | None, jobs: Sequence[str]) -> dict[str, bytes]:
    """The rows that there are to be, of the `jobs` or all, by id. Errors: UnknownJob."""
    from . import columns

    there = shared.jobs()
    found: dict[str, bytes] = {}
    for job in jobs or there:
        if job not in there and (table is None or next(table.rows(f"job IN ({_quoted([job])})"), None) is None):
            raise UnknownJob(job)
        for decision in shared.each(job):
            found[decision.id] = columns.pack(row_of(decision, shared.decision_key(job, decision.group)))
    return found


class _Difference(Struct):
    """`fresh`: ids of rows that are not there. `replaced`: rows that say other things, or are there twice."""

    fresh: list[str]
    replaced: int = 0
    removed: int = 0


def _compare(table: Table, wanted: Mapping[str, bytes], jobs: Sequence[str]) -> _Difference:
    found = _Difference([])
    seen: set[str] = set()
    for one, row in table.rows(f"job IN ({_quoted(jobs)})" if jobs else None):
        if one not in wanted:
            found.removed += 1
        elif one in seen or wanted[one] != row:
            found.replaced += 1
        seen.add(one)
    found.fresh = sorted(wanted.keys() - seen)
    return found


def _others(table: Table, jobs: Sequence[str]) -> list[bytes]:
    """The rows that stay as they are, where only some jobs are asked for."""
    return [row for _, row in table.rows(f"job NOT IN ({_quoted(jobs)})")] if jobs else []


def _taken(wanted: dict[str, bytes]) -> list[bytes]:
    """The rows, which are held by nobody else any more."""
    rows = list(wanted.values())
    wanted.clear()
    return rows


def _tidy(table: Table, *, sweep: bool) -> None:
    """Best effort: the rows are as they are to be."""
    from .table import Outrun

    with suppress(Outrun, StorageFailed, Corrupt):
        table.tidy(sweep=sweep)


def _quoted(words: Collection[str]) -> str:
    return ", ".join("'" + word.replace("'", "''") + "'" for word in words)
