"""The half of the store that knows checkpoints whose bytes are, or were, somewhere else: listed here like any other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from fuse_ckpt.errors import CheckpointLeased, Corrupt, CorruptBlob, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, Manifest, Replica, Stage, State

from . import locks, pruning
from .blobs import stat_or_none
from .lifecycle import LEASE, Lifecycle
from .records import Records, blob_sizes
from .validation import fault_of

T = TypeVar("T")


class Elsewhere(Lifecycle):
    """See `Store` for what all methods have in common."""

    def add_remote(self, found: Sequence[tuple[Checkpoint, Replica]]) -> list[Checkpoint]:
        """Record checkpoints that lie in an object store and are not known here, in this order; those that were new.

        What they are made of is told by `learn`, when somebody wants to know. Errors: Corrupt (no such checkpoint can
        be), InvalidJobName.
        """
        for head, _ in found:
            _check(Manifest(head, ()))
        for job in {head.job for head, _ in found}:
            self.ensure_job(job, min(head.created_ns for head, _ in found if head.job == job))
        with locks.exclusive(self.layout.lock("publish")):
            return self._index.write(lambda records: _add_remote(found, records))

    def learn(self, manifest: Manifest) -> Checkpoint:
        """Record what a checkpoint that `add_remote` has added is made of. It may be learned already.

        Errors: UnknownCheckpoint, Corrupt (it is not what was announced, or cannot be).
        """
        _check(manifest)
        known = self._index.write(lambda records: _learn(manifest, records))
        self._follow(known.id, "learn:manifest")
        return known

    def is_learned(self, checkpoint: str) -> bool:
        """Whether it is known what the checkpoint is made of. Errors: UnknownCheckpoint."""
        found = _known(checkpoint, self._index.read(lambda records: records.by_id(checkpoint)))
        return found.remote is None or found.described

    def absent(self, checkpoint: str) -> dict[str, int]:
        """The digests of the checkpoint whose bytes are not here, and their sizes. Errors: UnknownCheckpoint."""
        found = _known(checkpoint, self._index.read(lambda records: records.manifest(checkpoint)))
        return {digest: size for digest, size in blob_sizes(found).items() if not self._blobs.holds(digest, size)}

    def receive(self, checkpoint: str, digest: str, source: Path | None = None) -> bool:
        """Have the bytes of a digest count for a checkpoint that is elsewhere: those of the file `source`, to which
        nobody writes, or else those that are here already; False where they are not.

        Errors: UnknownCheckpoint, CorruptBlob (the bytes of `source` are others: nothing is taken), OSError.
        """
        with locks.shared(self.layout.lock("gc")):
            if source is not None:
                adopted = self._blobs.adopt(source)
                if adopted.digest != digest:
                    raise CorruptBlob(f"What was fetched as {digest} has the digest {adopted.digest}: it is not used.")
            done = self._index.write(lambda records: self._hold(checkpoint, digest, records))
            self._blobs.recorded((digest,))
        return done

    @contextmanager
    def lock_fetch(self, digest: str) -> Iterator[None]:
        """Be the only one, of all processes and threads, that fetches these bytes; waits for who does."""
        with locks.exclusive(self.layout.lock(f"fetch-{digest}")) as lock:
            yield
            lock.path.unlink(missing_ok=True)  # while it is held: who waits for it opens a new one

    def _hold(self, checkpoint: str, digest: str, records: Records) -> bool:
        size = blob_sizes(_known(checkpoint, records.manifest(checkpoint))).get(digest)
        if size is None or not self._blobs.holds(digest, size):
            return False
        if records.held(checkpoint) is not None:
            records.hold_blobs(checkpoint, {digest: size})
        return True

    def arrived(self, checkpoint: str) -> Checkpoint:
        """The checkpoint; from now on one of this store alone, if all its bytes are here. Errors: UnknownCheckpoint."""
        with locks.shared(self.layout.lock("gc")):
            if not self.is_learned(checkpoint) or self.absent(checkpoint):
                return _known(checkpoint, self._index.read(lambda records: records.by_id(checkpoint)))
            here = self._index.write(lambda records: _arrived(checkpoint, records))
        self._follow(checkpoint, "arrived:manifest")
        return here

    def evict(self, checkpoints: Sequence[str]) -> list[Checkpoint]:
        """Let go of the bytes of these checkpoints, which lie in an object store, too; those that are elsewhere now.

        They stay listed. One that is leased, pinned, tagged or not replicated stays. The bytes go with `clear_garbage`.
        """
        leased = self._leased_now(checkpoints)
        wanted = [one for one in checkpoints if one not in leased]
        digests = {one: self._inodes_of(one) for one in wanted}
        evicted = self._index.write(lambda records: [_evict(one, digests[one], records) for one in wanted])
        done = [one for one in evicted if one is not None]
        for one in done:
            self._follow(one.id, "evict:manifest")
        return done

    def _leased_now(self, checkpoints: Iterable[str]) -> set[str]:
        found = set()
        for one in checkpoints:
            lock = locks.try_exclusive(self.layout.lock(f"{LEASE}{one}"))
            if lock is None:
                found.add(one)
                continue
            with lock:
                lock.path.unlink(missing_ok=True)
        return found

    def _inodes_of(self, checkpoint: str) -> dict[str, int]:
        manifest = self._index.read(lambda records: records.manifest(checkpoint))
        found = {one: stat_or_none(self.layout.blob(one)) for one in (blob_sizes(manifest) if manifest else ())}
        return {digest: status.st_ino for digest, status in found.items() if status is not None}

    def listed_from(self, storage: str, job: str | None = None) -> list[Checkpoint]:
        """The checkpoints, of one job or of all, whose bytes are in that object store and not, or not all, here."""
        found = self._index.read(lambda records: list(records.checkpoints(job)))
        return [one for one in found if one.remote == storage]

    def forget_remote(self, checkpoints: Sequence[str]) -> int:
        """List these no more, which are elsewhere; how many they were. The object store is told nothing. One that is
        leased stays."""
        found = list(checkpoints)
        leased = self._leased_now(found)
        gone = [one for one in found if one not in leased]

        def work(records: Records) -> None:
            for one in gone:
                manifest = records.manifest(one, deleted=True)
                if manifest is not None:
                    for tag in manifest.checkpoint.tags:
                        records.drop_tag(tag)
                    pruning.remove(manifest, {}, None, records, time.time_ns())
                    records.drop_replica(one)  # it is not to go there

        self._index.write(work)
        for one in gone:
            self.layout.manifest(one).unlink(missing_ok=True)
        return len(gone)

    def merge(self, local: str, whole: Manifest, replica: Replica) -> Checkpoint:
        """This node's part `local` of a checkpoint of many nodes is the `whole` one from now on, under its id.

        Where `whole` is not `described`, what it is made of is told by `learn`, and until then it has the part's files.

        What people have said of it goes along. Errors: UnknownCheckpoint, CheckpointLeased (by whoever reads the part:
        try again later), Corrupt.
        """
        _check(whole)
        lock = locks.try_exclusive(self.layout.lock(f"{LEASE}{local}"))
        if lock is None:
            raise CheckpointLeased(f"Checkpoint {local} is in use: it is joined with the other nodes' parts later.")
        with lock, locks.exclusive(self.layout.lock("publish")), self._marking():
            merged = self._index.write(lambda records: _merge(local, whole, replica, records))
            lock.path.unlink(missing_ok=True)
            self._write_manifest(merged)
            self.layout.manifest(local).unlink(missing_ok=True)
        return merged.checkpoint

    def sent(self, storage: str, job: str, digests: Iterable[str]) -> dict[str, str]:
        """digest → the key of an object of the job there that has these bytes, of those that were sent before."""

        def work(records: Records) -> dict[str, str | None]:
            return {digest: records.sent(storage, job, digest) for digest in digests}

        return {digest: key for digest, key in self._index.read(work).items() if key is not None}

    def note_sent(self, storage: str, head: Checkpoint, keys: Mapping[str, str]) -> None:
        """These bytes are there, and the checkpoint's part names them: digest → key; unless it was deleted."""

        def work(records: Records) -> None:
            for digest, key in keys.items() if records.is_outgoing(head.id) else ():
                records.put_sent(storage, head.job, digest, key)

        self._index.write(work)

    def forget_sent(self, storage: str, job: str, digests: Iterable[str]) -> None:
        """These bytes are to be sent anew."""

        def work(records: Records) -> None:
            for digest in digests:
                records.drop_sent(storage, job, digest)

        self._index.write(work)


def _check(manifest: Manifest) -> None:
    """Errors: Corrupt. Its number is given here, whatever it was elsewhere."""
    wrong = fault_of(replace(manifest, checkpoint=replace(manifest.checkpoint, ordinal=1)))
    if wrong is not None:
        raise Corrupt(f"Checkpoint {manifest.checkpoint.id!r} of the object store cannot be: {wrong}.")


def _add_remote(found: Sequence[tuple[Checkpoint, Replica]], records: Records) -> list[Checkpoint]:
    new = []
    for head, replica in found:
        if records.by_id(head.id, deleted=True) is None:
            numbered = replace(head, ordinal=records.last_ordinal(head.job, head.name) + 1)
            records.add(Manifest(numbered, ()), ())
            records.put_replica(head.id, replica)
            new.append(numbered)
    return new


def _learn(manifest: Manifest, records: Records) -> Checkpoint:
    known = _known(manifest.checkpoint.id, records.manifest(manifest.checkpoint.id))
    if known.checkpoint.remote is None or known.checkpoint.described:
        return known.checkpoint
    learned = replace(manifest, checkpoint=replace(known.checkpoint, described=True))
    records.put_away(learned)
    records.put_checkpoint(learned.checkpoint)
    return learned.checkpoint


def _arrived(checkpoint: str, records: Records) -> Checkpoint:
    found = _known(checkpoint, records.manifest(checkpoint))
    here = replace(found, checkpoint=replace(found.checkpoint, remote=None, described=False))
    held = records.held(checkpoint)
    if held is not None:
        records.hold(here, dict.fromkeys(held, 0), ())
        records.drop_held(checkpoint)
    records.put_checkpoint(here.checkpoint)
    return here.checkpoint


def _evict(checkpoint: str, inodes: Mapping[str, int], records: Records) -> Checkpoint | None:
    found, replica = records.manifest(checkpoint), records.replica(checkpoint)
    if found is None or replica is None or replica.stage is not Stage.REPLICATED:
        return None
    if found.checkpoint.pinned or found.checkpoint.tags:  # somebody has said so meanwhile
        return None
    records.disclaim(records.counted(found), inodes)
    records.drop_held(checkpoint)
    gone = replace(found, checkpoint=replace(found.checkpoint, remote=replica.storage, described=True))
    records.put_away(gone)
    records.put_checkpoint(gone.checkpoint)
    return gone.checkpoint


def _known(checkpoint: str, found: T | None) -> T:
    if found is None:
        raise UnknownCheckpoint(checkpoint)
    return found


def _merge(local: str, whole: Manifest, replica: Replica, records: Records) -> Manifest:
    before = records.manifest(local)
    if before is None or before.checkpoint.state is not State.AVAILABLE:
        raise UnknownCheckpoint(local)
    said = before.checkpoint
    head = replace(
        whole.checkpoint, ordinal=said.ordinal, committed_ns=said.committed_ns, draft=said.draft, tags=said.tags,
        pinned=said.pinned, settled=True, run=said.run, parent=said.parent,
    )  # fmt: skip
    merged = replace(whole, checkpoint=head) if head.described else replace(before, checkpoint=head)
    records.merge(before, merged)
    records.put_replica(head.id, replica)
    records.put_replica(local, replace(replica, became=head.id))
    return merged
