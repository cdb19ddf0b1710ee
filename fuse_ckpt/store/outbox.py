"""The half of the store that knows which checkpoints are to be copied to an object store, and how far that is."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from fuse_ckpt.errors import UnknownCheckpoint, UnknownJob
from fuse_ckpt.model import Checkpoint, Job, Replica, Replication, Stage, State

from .index import Index
from .layout import Layout
from .locks import Lock, try_exclusive
from .queueing import queue
from .records import Records


class Outbox:
    """What waits to be copied, and what is there; see `Store` for what all methods have in common.

    A commit puts its checkpoint into the outbox in the transaction that makes it exist, if its job replicates. Until it
    is copied no policy removes it, and nothing of it is collected; a person may delete it.
    """

    layout: Layout
    _index: Index

    def replicate(self, job: str, to: Replication | None) -> Job:
        """Have what the job commits from now on be copied there; None: nowhere. Errors: UnknownJob."""

        def work(records: Records) -> Job:
            known = records.job(job)
            if known is None:
                raise UnknownJob(job)
            changed = replace(known, replication=to)
            records.put_job(changed)
            return changed

        return self._index.write(work)

    def outbox(self, storage: str | None = None) -> dict[str, Replica]:
        """What is to be copied, to one connection or to all, by ids, in the order of the commits."""
        found = self._index.read(lambda records: dict(records.outbox()))
        return {one: replica for one, replica in found.items() if storage in (None, replica.storage)}

    def waiting(self, storage: str | None = None, job: str | None = None) -> dict[str, Replica]:
        """What of the outbox, of one job or of all, has bytes that are still to be sent."""

        def work(records: Records) -> dict[str, Replica]:
            found = {one: replica for one, replica in records.outbox() if replica.is_unsent}
            if job is None:
                return found
            heads = {one: records.by_id(one) for one in found}
            return {one: found[one] for one, head in heads.items() if head is not None and head.job == job}

        found = self._index.read(work)
        return {one: replica for one, replica in found.items() if storage in (None, replica.storage)}

    def known_among(self, checkpoints: Iterable[str]) -> list[Checkpoint]:
        """Those of `checkpoints` (ids) that are not deleted."""
        found = self._index.read(lambda records: [records.by_id(one) for one in checkpoints])
        return [one for one in found if one is not None]

    def is_part(self, checkpoint: str) -> bool:
        """Whether it is a part alone of what several nodes write."""
        replica = self.replica(checkpoint)
        return replica is not None and replica.nodes > 1 and not replica.is_over

    def removed_there(self, checkpoint: str) -> None:
        """The copy of a checkpoint that is no more has gone, too."""
        self._index.write(lambda records: records.drop_replica(checkpoint))

    def replica(self, checkpoint: str) -> Replica | None:
        """How the copy of a checkpoint is; None where there is to be none."""
        return self._index.read(lambda records: records.replica(checkpoint))

    def replicas(self, checkpoints: Iterable[str]) -> dict[str, Replica]:
        """How the copies of these checkpoints are, by ids; those that are to have none are left out."""

        def work(records: Records) -> dict[str, Replica | None]:
            return {one: records.replica(one) for one in checkpoints}

        return {one: found for one, found in self._index.read(work).items() if found is not None}

    def queue_all(self, job: str) -> int:
        """Put every available checkpoint of a job that is not copied yet into the outbox; how many are in it now.

        Errors: UnknownJob.
        """

        def work(records: Records) -> int:
            if records.job(job) is None:
                raise UnknownJob(job)
            mine = list(records.checkpoints(job))
            for head in mine:
                queue(head, records)
            return sum(records.is_outgoing(head.id) for head in mine)

        return self._index.write(work)

    def note_replica(self, checkpoint: str, seen: Checkpoint, change: Callable[[Replica], Replica]) -> Replica | None:
        """Record how far the copy of the checkpoint, as it was `seen`, has come.

        None, and nothing is recorded, where it is in the outbox no more, or was amended meanwhile: then what was done
        was done for something else.
        """

        def work(records: Records) -> Replica | None:
            before, now = records.replica(checkpoint), records.by_id(checkpoint)
            if before is None or before.is_over or now is None or now.revision != seen.revision:
                return None
            after = change(before)
            records.put_replica(checkpoint, after)
            if after.nodes > 1 and after.stage in (Stage.ABORTED, Stage.GIVEN_UP):
                records.put_checkpoint(_failed(now, after))
            return after

        return self._index.write(work)

    def forget_outbox(self, storage: str) -> int:
        """Nothing more is copied there: its entries are given up, and no job copies there; how many those were."""

        def work(records: Records) -> int:
            mine = [(one, replica) for one, replica in records.outbox() if replica.storage == storage]
            for one, replica in mine:
                if replica.stage is Stage.REMOVING:
                    records.drop_replica(one)
                else:
                    records.put_replica(one, replace(replica, stage=Stage.GIVEN_UP, reason=f"{storage} was detached"))
            for job in records.jobs():
                records.drop_all_sent(storage, job.name)  # attached again, it may be at another place
                if job.replication is not None and job.replication.storage == storage:
                    records.put_job(replace(job, replication=None))
            return len(mine)

        return self._index.write(work)

    def lock_upload(self, storage: str) -> Lock | None:
        """Be the only process that copies to a connection; None where another one does. Given back by its death."""
        return try_exclusive(self.layout.lock(f"upload-{storage}"))

    def lock_catalog(self, storage: str) -> Lock | None:
        """For who writes the catalog of a connection's object store; None while another process does."""
        return try_exclusive(self.layout.lock(f"catalog-{storage}"))

    def known_for_upload(self, checkpoint: str) -> Checkpoint:
        """The checkpoint, if it is still to be copied. Errors: UnknownCheckpoint."""

        def work(records: Records) -> Checkpoint | None:
            return records.by_id(checkpoint) if records.is_outgoing(checkpoint) else None

        found = self._index.read(work)
        if found is None:
            raise UnknownCheckpoint(checkpoint)
        return found


def _failed(part: Checkpoint, replica: Replica) -> Checkpoint:
    """A part whose whole will never be: nobody is to resume from it."""
    why = f"{replica.reason}" if replica.reason else f"it was {replica.stage}"
    return replace(part, state=State.FAILED, failure=f"a part of what {replica.nodes} nodes wrote, and {why}")
