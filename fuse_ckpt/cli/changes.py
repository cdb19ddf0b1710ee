"""What happened to a job's checkpoints between two looks at them. Pure: no clock, no I/O.

The events follow from the differences of the records (id, revision, state), so that none is lost however much happens
between two looks; only what was done and undone again in between is not told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fuse_ckpt.cli import listing

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.session import PendingUnit


@dataclass(frozen=True)
class Event:
    """`kind`: pending, available, failed, amended, deleted or restored. `checkpoint` None: it is pending."""

    kind: str
    record: listing.Record
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class Seen:
    """What one look found: the checkpoints by id, deleted ones too, and the NAMEs of what is pending."""

    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    pending: frozenset[str] = frozenset()


def events(
    job: str, before: Seen, units: Sequence[PendingUnit] | None, checkpoints: Iterable[Checkpoint]
) -> tuple[list[Event], Seen]:
    """What has happened to `job` since `before`, oldest first, and what is seen now.

    `units`: what is pending, looked at before the `checkpoints`; None: not looked at this time.
    """
    now = {one.id: one for one in checkpoints}
    known = before.checkpoints
    changed = sorted(key for key in known.keys() | now.keys() if known.get(key) != now.get(key))
    told = [event for key in changed for event in _told(known.get(key), now.get(key))]
    committed = {now[key].name: now[key].created_ns for key in changed if key not in known}
    past = {unit.name for unit in units or () if unit.since_ns <= committed.get(unit.name, -1)}  # committed meanwhile
    earlier = [unit for unit in units or () if unit.name in past - before.pending]
    later = [unit for unit in units or () if unit.name not in past | (before.pending - committed.keys())]
    waiting = before.pending - committed.keys() if units is None else {unit.name for unit in units} - past
    started = [[_pending(job, unit) for unit in some] for some in (earlier, later)]
    return [*started[0], *told, *started[1]], Seen(now, frozenset(waiting))


def _told(before: Checkpoint | None, now: Checkpoint | None) -> Iterator[Event]:
    if now is None:  # collected
        if before is not None and before.state != "deleted":
            yield _event("deleted", before, "deleted")
    elif before is None:
        state = now.deleted_from or "available" if now.state == "deleted" else now.state
        yield _event(str(state), now, str(state))
        if now.state == "deleted":
            yield _event("deleted", now)
    else:
        if now.revision > before.revision:
            yield _event("amended", now)
        if now.state != before.state:
            yield _event("restored" if before.state == "deleted" else str(now.state), now)


def _event(kind: str, checkpoint: Checkpoint, status: str | None = None) -> Event:
    record = listing.record(checkpoint)
    return Event(kind, {"event": kind, **record, "status": status or record["status"]}, checkpoint)


def _pending(job: str, unit: PendingUnit) -> Event:
    return Event("pending", {"event": "pending", **listing.pending_record(unit, job)})
