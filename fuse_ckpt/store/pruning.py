"""What is remembered of copies goes with the checkpoints, or it would grow for ever. Inside one transaction.

**`sent`** (digest → object) can be asked for as long as the object's group may lend it. A row is made only for bytes of
a checkpoint that is in the outbox then, in one transaction with that look (`note_sent`), and only of its settled form,
which changes no more: so whoever forgets the checkpoint finds all rows of its group by its manifest. A row whose object
is of an earlier group stays, and goes with that one's checkpoint. One that is dropped too soon costs sending again;
one that stayed would, once the group's tombstone has gone, name an object that is not there any more.

**`generations`** (attempt, NAME → how many) must outlive what they have numbered: a number that is given twice is a
group that has a tombstone, or another's part, and is not copied. A launcher never repeats an attempt, but people do. So
a number is kept for long after its checkpoint, and longer where something still waits to be deleted there.
"""

from __future__ import annotations

from collections.abc import Mapping

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Manifest, Replica, Stage

from .records import Records, blob_sizes
from .tables import Left

NUMBERED_NS = 90 * 86_400 * 10**9  # three times as long as a tombstone is kept


def remove(manifest: Manifest, inodes: Mapping[str, int], left: Left | None, records: Records, now_ns: int) -> None:
    """As `Records.remove`, and forget what was sent for the checkpoint alone."""
    head = manifest.checkpoint
    replica = records.replica(head.id)
    if replica is not None and replica.group:
        for digest in blob_sizes(manifest):
            if _is_of(replica, head.job, digest, records):
                records.drop_sent(replica.storage, head.job, digest)
    if replica is not None and replica.nodes > 1:
        records.note_gone(f"{head.job}\0{replica.attempt}", head.name, now_ns)
    records.remove(manifest, inodes, left)


def _is_of(replica: Replica, job: str, digest: str, records: Records) -> bool:
    """Whether the bytes lie there as the group's own; where the row is damaged, it goes in any case."""
    try:
        key = records.sent(replica.storage, job, digest)
    except CorruptRecord:
        return True
    return key is not None and f"/{replica.group}/" in key


def forget_numbers(records: Records, now_ns: int) -> None:
    """Forget the numbers of what has been gone for long."""
    if not any(replica.stage is Stage.REMOVING for _, replica in records.outbox()):
        records.forget_generations(records.old_generations(now_ns - NUMBERED_NS))
