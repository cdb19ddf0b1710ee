"""Checkpoints from the outbox into an object store, one after another, whatever happens in between.

Everything here can be killed at any step and done again by anybody: bytes have names of their own there, the part is
made once all of them are there, and the record says so last.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec.structs import replace

from fuse_ckpt.errors import Corrupt, CorruptBlob, StorageFailed, UnknownCheckpoint, Withdrawn
from fuse_ckpt.faults import fault
from fuse_ckpt.model import Checkpoint, Entry, Manifest, Replica, Stage
from fuse_ckpt.session import attaching
from fuse_ckpt.session.pace import Pace
from fuse_ckpt.sharing import GroupState, Part, PartFile, SharedStore, Standing, group_of
from fuse_ckpt.staging import awaited
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Stop, run

_log = logging.getLogger(__name__)

LARGE = 16 << 20  # bytes; a larger file goes in parts, several at once, and has the memory for itself
SMALL_AT_ONCE = 6  # files
NOTE = 2.0  # seconds between two notes of how far it is: each is a transaction
TRIES = 3  # of one checkpoint, before it waits for its next turn


class Sender:
    """Copies what waits for one connection. `pace` bounds the speed, and ends it."""

    def __init__(self, store: Store, storage: str, shared: SharedStore, pace: Pace) -> None:
        self._store = store
        self._storage = storage
        self._shared = shared
        self._pace = pace

    def send(self, checkpoint: str) -> Replica | None:
        """Bring the copy of a checkpoint as far as it can be; how it is then, None where it is not to be copied now.

        Errors: StorageFailed (also: it has to be tried again), Left.
        """
        for _ in range(TRIES):
            try:
                head = self._store.known_for_upload(checkpoint)
                return self._send(head, self._store.manifest(checkpoint))
            except UnknownCheckpoint:  # deleted
                return None
            except _Amended:
                continue
            except Withdrawn as error:
                self._forget(checkpoint, error.groups)
            except (Corrupt, CorruptBlob) as error:
                return self._give_up(checkpoint, str(error))
        raise StorageFailed(f"Checkpoint {checkpoint} changes as fast as it is copied: it is tried again.")

    def look(self, checkpoint: str) -> Replica | None:
        """See whether a checkpoint of many nodes is decided, whose part is there. Errors: StorageFailed."""
        try:
            head, replica = self._store.known_for_upload(checkpoint), self._store.replica(checkpoint)
        except UnknownCheckpoint:
            return None
        return self._settle(head, self._shared.reconcile(head.job, replica.group)) if replica is not None else None

    def remove(self, checkpoint: str, replica: Replica) -> bool:
        """Delete the copy of a checkpoint that is no more; False as long as its bytes are to stay for others."""
        self._shared.tombstone(replica.job, replica.group, time.time_ns())
        if replica.group not in self._shared.delete(replica.job, [replica.group]):
            return False
        self._store.removed_there(checkpoint)
        return True

    # -- one checkpoint -----------------------------------------------------------------------------------------------

    def _send(self, head: Checkpoint, manifest: Manifest) -> Replica | None:
        replica = self._store.replica(head.id)
        if replica is None or replica.is_over:
            return None
        group = group_of(head.job, replica.attempt, head.name, replica.generation)
        keys = self._put_all(head, group, replica.rank, manifest)
        fault("replicate:settle")
        if self._store.settle(head.id).revision != head.revision:
            raise _Amended
        fault("replicate:part")
        part = _part(head, manifest, replica, group, keys, self._awaited(manifest) if replica.nodes > 1 else {})
        found = self._shared.put_part(part)
        if not found.ours and _digests(found.part.files) != _digests(part.files):
            return self._give_up(head.id, f"an earlier run of rank {part.rank} has written its part of {group} already")
        fault("replicate:note")
        self._store.note_sent(self._storage, head, {file.digest: file.key for file in found.part.files if file.key})
        self._note(head, lambda now: replace(now, group=group, sent=now.size, reason=None))
        return self._settle(head, self._shared.reconcile(head.job, group, rank=replica.rank))

    def _put_all(self, head: Checkpoint, group: str, rank: int, manifest: Manifest) -> dict[str, str]:
        """Have every file's bytes there; digest → key."""
        files = {one.digest: one for one in (*manifest.entries, *manifest.companions) if one.digest}
        keys = self._reusable(head.job, files)
        left = sorted((one for one in files.values() if one.digest not in keys), key=_size, reverse=True)
        known = sum(files[digest].size for digest in keys)
        self._note(head, lambda now: replace(now, stage=Stage.UPLOADING, group=group, sent=known, reason=None))
        progress = _Noted(self, head, known)

        def put(one: Entry) -> None:
            path = self._store.blob_path(one.digest)
            keys[one.digest] = self._shared.put_data(
                head.job, group, rank, path, one.size, one.digest, progress.advance
            )

        large = [one for one in left if one.size >= LARGE]
        run(min(1, len(large)), large, put, Stop())
        small = [one for one in left if one.size < LARGE]
        run(min(SMALL_AT_ONCE, len(small)), small, put, Stop())
        return keys

    def _awaited(self, manifest: Manifest) -> dict[str, int]:
        """What other nodes must have, by what this one's files say. Errors: CorruptBlob."""
        root = self._store.layout.root
        files = {
            one.path: str(self._store.blob_path(one.digest).relative_to(root)) for one in manifest.entries if one.digest
        }
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return awaited(fd, files)
        finally:
            os.close(fd)

    def _reusable(self, job: str, digests: Iterable[str]) -> dict[str, str]:
        """What earlier groups of the job have sent already: digest → key."""
        known = self._store.sent(self._storage, job, digests)
        groups = self._shared.reusable(job, {_group_in(key) for key in known.values()}) if known else set()
        return {digest: key for digest, key in known.items() if _group_in(key) in groups}

    def _forget(self, checkpoint: str, groups: frozenset[str]) -> None:
        head = self._store.known_for_upload(checkpoint)
        manifest = self._store.manifest(checkpoint)
        known = self._store.sent(self._storage, head.job, _digests_in(manifest))
        gone = [digest for digest, key in known.items() if _group_in(key) in groups]
        self._store.forget_sent(self._storage, head.job, gone)

    def _settle(self, head: Checkpoint, standing: Standing) -> Replica | None:
        """Record what became of the group."""
        decision = standing.decision
        if standing.state is GroupState.REPLICATED and decision is not None and decision.id != head.id:
            if attaching.join(self._store, self._storage, self._shared, head.id, decision):
                return self._store.replica(decision.id)
            return self._store.replica(head.id)
        stage = {
            GroupState.REPLICATED: Stage.REPLICATED,
            GroupState.ABORTED: Stage.ABORTED,
            GroupState.DELETED: Stage.ABORTED,
        }.get(standing.state, Stage.PARTIAL)
        reason = decision.reason if decision is not None and not decision.committed else None
        if standing.state is GroupState.DELETED:
            reason = "it was deleted there"
        return self._note(
            head,
            lambda now: replace(now, stage=stage, parts=standing.present, reason=reason, nodes=standing.nodes or 1),
        )

    def _give_up(self, checkpoint: str, reason: str) -> Replica | None:
        _log.error("checkpoint %s is not copied to %s: %s", checkpoint, self._storage, reason)
        head = self._store.checkpoint(checkpoint)
        return self._note(head, lambda now: replace(now, stage=Stage.GIVEN_UP, reason=reason))

    def _note(self, head: Checkpoint, change: Callable[[Replica], Replica]) -> Replica | None:
        noted = self._store.note_replica(head.id, head, lambda now: replace(change(now), changed_ns=time.time_ns()))
        if noted is None:
            raise _Amended
        return noted

    def note_bytes(self, head: Checkpoint, sent: int) -> None:
        """How far it is, for who asks."""
        self._note(head, lambda now: replace(now, sent=min(sent, now.size)))

    def let_go(self, count: int) -> None:
        self._pace.let_go(count)


class _Amended(Exception):
    """The checkpoint is not what is being copied any more."""


class _Noted:
    """Counts what has gone of a checkpoint and notes it from time to time."""

    def __init__(self, sender: Sender, head: Checkpoint, known: int) -> None:
        self._sender = sender
        self._head = head
        self._sent = known
        self._noted = time.monotonic()

    def advance(self, count: int) -> None:
        """Errors: Left, _Amended (also: deleted)."""
        self._sender.let_go(count)
        self._sent += count  # threads may lose a count here: it is only shown
        if time.monotonic() - self._noted >= NOTE:
            self._noted = time.monotonic()
            self._sender.note_bytes(self._head, self._sent)


def _part(
    head: Checkpoint, manifest: Manifest, replica: Replica, group: str, keys: Mapping[str, str], awaits: dict[str, int]
) -> Part:
    return Part(
        job=head.job, group=group, rank=replica.rank, nodes=replica.nodes, name=head.name, shape=head.shape,
        generation=replica.generation, attempt=replica.attempt, node=head.node, local=head.id,
        created_ns=head.created_ns, sealed_ns=head.committed_ns, metadata=head.metadata,
        files=tuple(PartFile.of(one, keys.get(one.digest, "")) for one in manifest.entries),
        companions=tuple(PartFile.of(one, keys.get(one.digest, "")) for one in manifest.companions),
        parent=head.parent, run=head.run, awaits=awaits,
    )  # fmt: skip


def _digests(files: Sequence[PartFile]) -> dict[str, tuple[str, str]]:
    return {file.path: (file.digest, file.target) for file in files}


def _digests_in(manifest: Manifest) -> set[str]:
    return {one.digest for one in (*manifest.entries, *manifest.companions) if one.digest}


def _group_in(key: str) -> str:
    """The group whose rank has sent the object: a key is `d/<group>/<rank>/<digest>`."""
    return key.split("/")[1]


def _size(one: Entry) -> int:
    return one.size
