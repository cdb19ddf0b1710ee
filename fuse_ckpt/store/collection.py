"""The part of the store that takes away what nobody names any more, in steps of which a crash may leave any undone.

1. One transaction forgets a few checkpoints and turns the blobs that they alone named into garbage.
2. Their manifests' files go.
3. With nobody committing, the files of garbage go, and one transaction forgets them and the inodes that they were.

A commit holds locks/gc from its look at a blob to its record. So it is before step 3, which finds the blob named again,
or after it, and finds no blob.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Collection as Bag
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from fuse_ckpt.errors import Busy, Collecting, CorruptRecord, UnknownCheckpoint
from fuse_ckpt.faults import fault
from fuse_ckpt.model import Checkpoint, Kind, Manifest, State

from . import locks, pruning
from .accounts import BLOCK, Accounts, Plan
from .blobs import stat_or_none
from .locks import Lock
from .records import Records, blob_sizes
from .tables import Blob, Garbage, Left
from .uses import in_use

T = TypeVar("T")

FEW = 32  # checkpoints, or blobs, at a time: somebody may be waiting for the lock
AT_ONCE = 2000  # manifests that are looked through in one transaction: some 10 ms
TURN = 3.0  # seconds; a mount that collects has mostly done it by then, a `gc` of much has not
POLL = 0.02  # seconds
_DIGEST = re.compile(rb"[0-9a-f]{64}")


class Collected(Struct):
    """What `collect` did."""

    checkpoints: list[Checkpoint]
    in_use: dict[str, str]  # left alone: who looks at them, by their ids


class Cleared(Struct):
    """What `clear_garbage` did, in bytes of the disk. `held`: working trees hold them; `waiting`: somebody commits."""

    blobs: int = 0
    free: int = 0
    held: int = 0
    waiting: int = 0


class Tidied(Struct):
    """What `tidy` did. `kept`: what it should have removed, and why it is there still, by their ids."""

    removed: list[Checkpoint]
    collected: list[Checkpoint]
    kept: dict[str, str]
    cleared: Cleared
    evicted: list[Checkpoint] = []  # let go of here: they are in an object store, too


class Collection(Accounts):
    """Collecting; see `Store` for what all methods have in common."""

    @contextmanager
    def collecting(self, who: str, patience: float = 0.0) -> Iterator[Lock]:
        """Be the only one that collects, after up to `patience` seconds. Errors: Collecting, naming who does."""
        path = self.layout.lock("collect")
        lock = _try(path, patience)
        if lock is None:
            raise Collecting(f"{locks.read_note(path) or 'Another process'} is collecting: try again when it is done.")
        with lock:
            with suppress(OSError):
                lock.note(who)
            yield lock

    def collect(self, checkpoints: Sequence[str]) -> Collected:
        """Forget these checkpoints (ids): those that are deleted, and that nobody looks at through a mount.

        Belongs into `collecting`; `clear_garbage` then takes their bytes away.
        """
        done = Collected([], {})
        for few in _batches(checkpoints):
            found = self._deleted_manifests(few)
            used = in_use(self.layout.locks)  # in this order: first what is deleted, then who uses it, see Uses
            done.in_use |= {one.checkpoint.id: used[one.checkpoint.id] for one in found if one.checkpoint.id in used}
            done.checkpoints += self._forget([one for one in found if one.checkpoint.id not in used])
        return done

    def clear_garbage(self, patience: float = 0.0) -> Cleared:
        """Take the files of garbage away, waiting up to `patience` seconds for each few of them until nobody commits.

        Belongs into `collecting`.
        """
        cleared = Cleared()
        garbage = self._index.read(lambda records: records.garbage())
        named = self._count_again(garbage) if garbage else Counter()
        for few in _batches(list(garbage)):
            gc = _try(self.layout.lock("gc"), patience)
            if gc is None:
                cleared.waiting = sum(found.size for found in self._index.read(lambda r: r.garbage()).values())
                break
            with gc:
                self._clear({digest: garbage[digest] for digest in few}, named, cleared)
        self.keep_reserve()
        return cleared

    def tidy(self, plan: Plan, who: str, patience: float = 0.0) -> Tidied:
        """Carry a plan out: move to the trash, collect, and take away what is garbage; see `clear_garbage`.

        `who`: what another one that wants to collect reads of us. `patience`: seconds to wait, each time, for commits
        to end, and for a mount that collects. Errors: Collecting (what a policy removes is in the trash then),
        CorruptRecord.
        """
        done = Tidied([], [], {}, Cleared())
        gone = {one.id for one, _ in plan.trash}
        done.evicted = self.evict([one.id for one in (*plan.removed, *plan.pressed) if one.id not in gone])
        gone |= {one.id for one in done.evicted}
        for few in _batches([one for one in (*plan.removed, *plan.pressed) if one.id not in gone]):
            self._delete_each(few, done)
        going = [one.id for one in (*plan.expired, *plan.pressed) if one.id not in done.kept]
        if going or self.has_garbage():
            with self.collecting(who, min(patience, TURN)):
                collected = self.collect(going)
                done.collected = collected.checkpoints
                done.kept |= {one: f"in use by {who}" for one, who in collected.in_use.items()}
                done.cleared = self.clear_garbage(patience)
        return done

    def _delete_each(self, checkpoints: Sequence[Checkpoint], done: Tidied) -> None:
        try:
            self.delete([one.id for one in checkpoints], by_policy=True)
        except (Busy, UnknownCheckpoint) as error:  # held this very moment, or somebody else was faster
            if len(checkpoints) == 1:
                done.kept[checkpoints[0].id] = str(error)
                return
            for one in checkpoints:
                self._delete_each([one], done)
        else:
            done.removed += checkpoints

    def has_garbage(self) -> bool:
        """Whether `clear_garbage` would find any."""
        return bool(self._index.read(lambda records: records.garbage(at_most=1)))

    # what the working tree holds still

    def was_collected(self, job: str, name: str, files: Iterable[tuple[str, int, int]]) -> bool:
        """Whether files (path below the root, size, mtime in ns) are those of a collected checkpoint, unchanged."""
        left = self._index.read(lambda records: records.left(job, name))
        return left is not None and set(files) <= set(left.files)

    def forget_left(self, job: str, names: Bag[str]) -> None:
        """The working tree holds units of these names alone: what is known of others' files is of no use any more."""
        if self._index.read(lambda records: records.left_but(job, names)):
            self._index.write(lambda records: records.forget_left(job, names))

    # steps 1 and 2

    def _deleted_manifests(self, checkpoints: Bag[str]) -> list[Manifest]:
        def work(records: Records) -> list[Manifest]:
            found = (records.manifest(one, deleted=True) for one in checkpoints)
            return [one for one in found if one is not None and one.checkpoint.state is State.DELETED]

        return self._index.read(work)

    def _forget(self, manifests: Sequence[Manifest]) -> list[Checkpoint]:
        if not manifests:
            return []
        inodes = self._inodes({digest for one in manifests for digest in blob_sizes(one)})
        left = {one.checkpoint.id: _left(self.layout.jobs, one) for one in manifests}

        def work(records: Records) -> list[Checkpoint]:
            gone = []
            for manifest in manifests:
                head = records.by_id(manifest.checkpoint.id, deleted=True)
                if head is not None and head.deleted_ns == manifest.checkpoint.deleted_ns:  # not restored meanwhile
                    pruning.remove(manifest, inodes, left[head.id], records, time.time_ns())
                    gone.append(head)
            return gone

        fault("collect:record")
        gone = self._with_reserve(lambda: self._index.write(work))
        fault("collect:manifest")
        for head in gone:
            self.layout.manifest(head.id).unlink(missing_ok=True)
        return gone

    def _inodes(self, digests: Iterable[str]) -> dict[str, int]:
        found = {digest: stat_or_none(self.layout.blob(digest)) for digest in digests}
        return {digest: status.st_ino for digest, status in found.items() if status is not None}

    # step 3

    def _clear(self, garbage: Mapping[str, Garbage], named: Counter[str], cleared: Cleared) -> None:
        """While nobody commits: take the files of these digests away, but for those that are named after all."""
        kept = self._index.read(lambda records: {digest for digest in garbage if records.has_blob(digest)})
        wrong = {digest: named[digest] for digest in garbage if named[digest] and digest not in kept}
        for digest in garbage:
            if digest not in kept and digest not in wrong:
                self._remove_blob(digest, cleared)

        def work(records: Records) -> None:
            for digest, count in wrong.items():
                records.restore_count(digest, Blob(count, garbage[digest].size))
            records.drop_garbage(garbage, {*kept, *wrong})

        fault("collect:inodes")
        self._with_reserve(lambda: self._index.write(work))

    def _remove_blob(self, digest: str, cleared: Cleared) -> None:
        path = self.layout.blob(digest)
        found = stat_or_none(path)
        if found is None:
            return
        fault("collect:blob")
        path.unlink(missing_ok=True)
        cleared.blobs += 1
        if found.st_nlink > 1:
            cleared.held += found.st_blocks * BLOCK
        else:
            cleared.free += found.st_blocks * BLOCK

    def _count_again(self, garbage: Bag[str]) -> Counter[str]:
        """How many manifests name each of these digests: what the counts are derived from, in case one was wrong.

        Raises CorruptRecord where a manifest cannot be read: then nobody knows.
        """
        wanted = {digest.encode() for digest in garbage}
        named: Counter[str] = Counter()
        away = self._index.read(lambda records: {one: records.held(one) or set() for one in records.away()})
        rows: list[tuple[str, bytes | None]] = [("", b"")]
        while rows:
            rows = self._index.read(partial(Records.raw_manifests, after=rows[-1][0], at_most=AT_ONCE))
            for checkpoint, row in rows:
                if checkpoint in away:
                    named.update(away[checkpoint].intersection(garbage))
                    continue
                text = self._manifest_file(checkpoint) if row is None else row
                named.update(digest.decode() for digest in wanted.intersection(_DIGEST.findall(text)))
        return named

    def _manifest_file(self, checkpoint: str) -> bytes:
        try:
            return self.layout.manifest(checkpoint).read_bytes()
        except OSError as error:
            raise CorruptRecord(
                f"Nothing is collected: which blobs checkpoint {checkpoint} needs cannot be read from the index."
            ) from error


def _try(path: Path, patience: float) -> Lock | None:
    """An exclusive lock on `path`, or None where somebody holds it for longer than `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        lock = locks.try_exclusive(path)
        if lock is not None or time.monotonic() >= deadline:
            return lock
        time.sleep(POLL)


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while few := list(islice(rest, FEW)):
        yield few


def _left(jobs: Path, manifest: Manifest) -> Left | None:
    """Those files of a checkpoint that the working tree has unchanged, if any: no mount is to take them for new."""
    head = manifest.checkpoint
    if not head.job:
        return None
    root, prefix = jobs / head.job / "work", head.unit.prefix
    files = (
        (f"{prefix}/{one.path}" if prefix else one.path, one.size, one.mtime_ns)
        for one in manifest.entries
        if one.kind is Kind.FILE
    )
    there = tuple((path, size, mtime_ns) for path, size, mtime_ns in files if _is_there(root / path, size, mtime_ns))
    return Left(there) if there else None


def _is_there(path: Path, size: int, mtime_ns: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (size, mtime_ns)
