"""The tables that say which checkpoints are to be copied to an object store, and which are there, inside one
transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from uuid import UUID

from msgspec.structs import replace

from fuse_ckpt.model import Replica, Stage

from .codec import is_sealed
from .tables import NAME_HASH, Kept, Table, Tables, id_key, id_of, name_key

# What no manifest tells: ways to object stores, and how far copies are.
KEPT = (Table.CONNECTIONS, Table.OUTBOX, Table.REPLICAS, Table.SENT, Table.GENERATIONS)


_GONE = b"gone"  # before the key of a number whose last checkpoint was forgotten: when that was


class ReplicaRecords(Tables):
    """A checkpoint has a row in the outbox, or in `replicas`, or in none of them."""

    def replica(self, checkpoint: str) -> Replica | None:
        """The copy of the checkpoint of a full id, on its way or arrived."""
        key = id_key(checkpoint)
        if key is None:
            return None
        return self._get(Table.OUTBOX, key, Replica) or self._get(Table.REPLICAS, key, Replica)

    def put_replica(self, checkpoint: str, replica: Replica) -> None:
        """Record how the copy is; what nothing is to be done for leaves the outbox."""
        key = UUID(checkpoint).bytes
        into, out_of = (Table.REPLICAS, Table.OUTBOX) if replica.is_over else (Table.OUTBOX, Table.REPLICAS)
        self._delete(out_of, key)
        self._put(into, key, replica)

    def drop_replica(self, checkpoint: str) -> None:
        key = UUID(checkpoint).bytes
        self._delete(Table.OUTBOX, key)
        self._delete(Table.REPLICAS, key)

    def remove_replica(self, checkpoint: str, job: str) -> None:
        """The checkpoint is no more, so its copy is to go, if there is one."""
        before = self.replica(checkpoint)
        self.drop_replica(checkpoint)
        if before is not None and before.stage is Stage.REPLICATED:
            self.put_replica(checkpoint, replace(before, stage=Stage.REMOVING, job=job))

    def is_outgoing(self, checkpoint: str) -> bool:
        """Whether it waits to be copied, or is being copied; also where its record is damaged."""
        key = id_key(checkpoint)
        return key is not None and self._row(Table.OUTBOX, key) is not None

    def parts(self) -> dict[str, Replica]:
        """The checkpoints that are a part alone of what several nodes write: the others' parts are not known to be
        there."""
        return {one: found for one, found in self.outbox() if found.nodes > 1 and found.stage is not Stage.REMOVING}

    def outbox(self) -> Iterator[tuple[str, Replica]]:
        """What is to be copied, by ids, in the order of the commits."""
        for key, found in self._pairs(Table.OUTBOX, self._from(Table.OUTBOX, b""), Replica):
            yield id_of(key), found

    def replicas(self) -> Iterator[tuple[str, Replica]]:
        """What nothing is to be done for any more, by ids."""
        for key, found in self._pairs(Table.REPLICAS, self._from(Table.REPLICAS, b""), Replica):
            yield id_of(key), found

    def sent(self, storage: str, job: str, digest: str) -> str | None:
        """The key of an object with these bytes; whether it is there still, only the object store can tell."""
        return self._get(Table.SENT, _sent_key(storage, job, digest), str)

    def put_sent(self, storage: str, job: str, digest: str, key: str) -> None:
        self._put(Table.SENT, _sent_key(storage, job, digest), key)

    def drop_sent(self, storage: str, job: str, digest: str) -> None:
        self._delete(Table.SENT, _sent_key(storage, job, digest))

    def next_generation(self, attempt: str, name: str) -> int:
        """The number of the next checkpoint of `name` (JOB/NAME) in the attempt, from 1; each call counts one on."""
        key = name_key(attempt, name)
        self._delete(Table.GENERATIONS, _GONE + key)
        number = 1 + (self._get(Table.GENERATIONS, key, int) or 0)
        self._put(Table.GENERATIONS, key, number)
        return number

    def drop_all_sent(self, storage: str, job: str) -> None:
        for key in [*self._keys(Table.SENT, name_key(storage, job))]:
            self._delete(Table.SENT, key)

    def note_gone(self, attempt: str, name: str, now_ns: int) -> None:
        """A checkpoint that `next_generation` has numbered is no more."""
        self._put(Table.GENERATIONS, _GONE + name_key(attempt, name), now_ns)

    def old_generations(self, before_ns: int) -> list[bytes]:
        """The keys of the numbers of what has been gone since before then."""
        gone = self._pairs(Table.GENERATIONS, self._items(Table.GENERATIONS, _GONE), int)
        return [key[len(_GONE) :] for key, since_ns in gone if len(key) > NAME_HASH and since_ns < before_ns]

    def forget_generations(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._delete(Table.GENERATIONS, key)
            self._delete(Table.GENERATIONS, _GONE + key)

    def kept(self) -> Iterator[Kept]:
        """The rows that a new index takes over, if they are whole."""
        for table in KEPT:
            for key, row in self._from(table, b""):
                if is_sealed(key, row):
                    yield Kept(table, bytes(key), bytes(row))

    def put_kept(self, kept: Kept) -> None:
        self._transaction.put(kept.key, kept.row, db=self._tables[Table(kept.table)])


def _sent_key(storage: str, job: str, digest: str) -> bytes:
    return name_key(storage, job) + bytes.fromhex(digest)
