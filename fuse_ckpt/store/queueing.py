"""When a checkpoint comes into the outbox, and when it leaves it without having been copied. Inside one transaction."""

from __future__ import annotations

import time

from msgspec.structs import replace

from fuse_ckpt.model import Checkpoint, Replica, Replication, Stage, State

from .records import Records
from .tables import id_key

DELETED = "it was deleted before it was copied"


def queue(head: Checkpoint, records: Records, *, new: bool = False) -> None:
    """Have a checkpoint be copied, where its job says so and it is not copied yet. `new`: it was just published.

    One that is on its way already and has been amended begins anew; what of it is there is found there.
    """
    job = records.job(head.job) if head.job else None
    if job is None or job.replication is None or head.remote is not None:
        return
    to = _as_it_ran(head, job.replication, records)
    before = records.replica(head.id)
    if before is None and to.nodes > 1:
        # A failed one counts too: on the other nodes it may be whole.
        generation = records.next_generation(f"{head.job}\0{to.attempt}", head.name) if new else 0
        before = _first(head, to, generation) if generation else None
    elif before is None and head.state is State.AVAILABLE:
        before = _first(head, to, head.ordinal)
    if before is not None and (not before.is_over or before.stage is Stage.GIVEN_UP):
        put(head, before, records)


def put(head: Checkpoint, replica: Replica, records: Records) -> None:
    """Put it into the outbox, from its beginning; one that is not whole is given up."""
    whole = head.state is State.AVAILABLE
    again = replace(
        replica, stage=Stage.WAITING if whole else Stage.GIVEN_UP, changed_ns=time.time_ns(), size=head.size, sent=0,
        parts=(), reason=None if whole else f"it is {head.state.value}",
    )  # fmt: skip
    records.put_replica(head.id, again)


def unqueue(checkpoint: str, records: Records) -> None:
    """A checkpoint is deleted: it is copied no more. What is there already stays known."""
    if records.is_outgoing(checkpoint):
        before = records.replica(checkpoint)
        if before is not None:
            records.put_replica(checkpoint, replace(before, stage=Stage.GIVEN_UP, reason=DELETED))


def _as_it_ran(head: Checkpoint, to: Replication, records: Records) -> Replication:
    """What a run has left is committed by the next one, and is still of the attempt that wrote it."""
    run = records.run(head.job, head.run) if head.run is not None and id_key(head.run) is not None else None
    ran = run.replication if run is not None else None
    return to if ran is None else replace(to, rank=ran.rank, nodes=ran.nodes, attempt=ran.attempt)


def _first(head: Checkpoint, to: Replication, generation: int) -> Replica:
    attempt = to.attempt if to.nodes > 1 else head.id
    return Replica(to.storage, Stage.WAITING, head.committed_ns, to.rank, to.nodes, attempt, generation)
