"""The part of the store that keeps what people say of checkpoints: tags, pins, deletion and its undoing; and who uses
one."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from fuse_ckpt.errors import CheckpointLeased, CheckpointPinned, StoreUnusable, TagTaken, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, State

from . import locks, references
from .locks import Lease
from .queueing import queue, unqueue
from .records import Records
from .revisions import Revisions
from .uses import Uses

T = TypeVar("T")

RESERVE = 1 << 20  # bytes that are given up so that a delete works on a full disk; an index page is 4 KiB
ROOMY = 64 << 20  # bytes that are free on a disk from which a reserve may be taken
LEASE = "lease-"


class Lifecycle(Revisions):
    """Tags, pins, leases, deletion; see `Store` for what all methods have in common."""

    # leases

    def lease(self, checkpoint: str, holder: str = "") -> Lease:
        """Keep a checkpoint from being deleted until the lease is closed, or we die. Errors: UnknownCheckpoint.

        `holder`: what a person should read who cannot delete it ("a run of job-2").
        """
        self._head(checkpoint)
        lease = locks.lease(self._lease_path(checkpoint), checkpoint, holder or f"process {os.getpid()}")
        try:
            self._head(checkpoint)  # again: a delete may have come first
            # Who reads may go on where nothing can be written; at worst a late file is added.
            with suppress(OSError, StoreUnusable):
                self.settle(checkpoint)
        except BaseException:
            lease.close()
            raise
        return lease

    def leased(self) -> dict[str, str]:
        """The checkpoints that are leased now, and by whom. Files of leases that have ended are removed."""
        found = {}
        for path in self.layout.locks.glob(f"{LEASE}*"):
            lock = locks.try_exclusive(path)
            if lock is None:
                found[path.name.removeprefix(LEASE)] = locks.holders(path) or "a process"
                continue
            with lock:
                path.unlink(missing_ok=True)  # while it is held: who waits for it opens a new one
        return found

    def uses(self, who: str) -> Uses:
        """Where the mount `who` ("a mount of job-2") says which checkpoints it shows; the caller closes it."""
        return Uses(self.layout.locks, who, self._head)

    # tags and pins

    def tag(self, checkpoint: str, tag: str, *, force: bool = False) -> Checkpoint:
        """Give a checkpoint a tag, which no other one has then. It may have it already.

        Errors: InvalidTag, UnknownCheckpoint, TagTaken (another has it, and `force` does not say to move it; or it is
        the name of a pushed one, which it would hide).
        """
        references.check_tag(tag)

        def work(records: Records) -> list[str]:
            head = known(checkpoint, records.by_id(checkpoint))
            pushed = records.newest("", tag)
            if pushed is not None and pushed.id != head.id:
                raise TagTaken(f"{tag} is the name of a pushed checkpoint, {pushed.id}: choose another tag.")
            holder = records.tagged(tag)
            changed = [] if tag in head.tags else [replace(head, tags=(*head.tags, tag))]
            if holder is not None and holder.id != head.id:
                if not force:
                    raise TagTaken(f"Tag {tag} is on {holder.id} ({place(holder)}): --force moves it here.")
                changed.append(replace(holder, tags=tuple(one for one in holder.tags if one != tag)))
            records.put_tag(tag, head.id)
            return [_changed(one, records) for one in changed]

        self._mark(work)
        return self._head(checkpoint)

    def untag(self, checkpoint: str, tag: str) -> Checkpoint:
        """Take a tag away from a checkpoint, which need not have it. Errors: UnknownCheckpoint."""

        def work(records: Records) -> list[str]:
            head = known(checkpoint, records.by_id(checkpoint))
            if tag not in head.tags:
                return []
            records.drop_tag(tag)
            return [_changed(replace(head, tags=tuple(one for one in head.tags if one != tag)), records)]

        self._mark(work)
        return self._head(checkpoint)

    def tagged(self, tag: str) -> Checkpoint | None:
        """The checkpoint that has the tag."""
        return self._index.read(lambda records: records.tagged(tag))

    def tags(self) -> list[str]:
        """All tags, in order."""
        return self._index.read(lambda records: records.tags())

    def pin(self, checkpoint: str, pinned: bool = True) -> Checkpoint:
        """Keep a checkpoint from being deleted by anybody, or no longer so. Errors: UnknownCheckpoint."""

        def work(records: Records) -> list[str]:
            head = known(checkpoint, records.by_id(checkpoint))
            return [] if head.pinned is pinned else [_changed(replace(head, pinned=pinned), records)]

        self._mark(work)
        return self._head(checkpoint)

    # deletion

    def delete(self, checkpoints: Sequence[str], *, by_policy: bool = False) -> None:
        """Move all of `checkpoints` (ids) to the trash, or none. Works on a full disk, too.

        `by_policy`: nobody has named them; what somebody has tagged since the policy was asked stays as what is pinned.
        Errors: UnknownCheckpoint, CheckpointLeased, CheckpointPinned.
        """
        unique = list(dict.fromkeys(checkpoints))
        now_ns = time.time_ns()

        def work(records: Records) -> list[str]:
            return [self._deleted(one, records, now_ns, by_policy) for one in unique]

        # Without a sync: the files are for when the index is lost, and then these are the lesser loss.
        self._with_reserve(lambda: self._mark(work, "delete:manifest", sync=False))

    def _deleted(self, checkpoint: str, records: Records, now_ns: int, by_policy: bool) -> str:
        """Mark it deleted, inside a write: who leases it from now on waits for that, and looks at the record again."""
        head = known(checkpoint, records.by_id(checkpoint))
        if head.pinned:
            raise CheckpointPinned(f"Checkpoint {head.id} ({place(head)}) is pinned: checkpoint unpin it first.")
        if by_policy and head.tags:
            raise CheckpointPinned(f"Checkpoint {head.id} ({place(head)}) is tagged {', '.join(head.tags)}: it stays.")
        path = self._lease_path(checkpoint)
        lock = locks.try_exclusive(path)
        if lock is None:
            who = locks.holders(path) or "a process"
            raise CheckpointLeased(f"Checkpoint {head.id} ({place(head)}) is in use by {who}: end that first.")
        with lock:
            path.unlink(missing_ok=True)  # while it is held: who waits for it opens a new one
        for tag in head.tags:  # they are free; the record remembers them for `restore`
            records.drop_tag(tag)
        unqueue(head.id, records)
        return _changed(replace(head, state=State.DELETED, deleted_ns=now_ns, deleted_from=head.state), records)

    def deleted(self, reference: str) -> Checkpoint:
        """The deleted checkpoint that an id, a fragment of one, or JOB/NAME@N means.

        Errors: InvalidReference (ambiguous), UnknownCheckpoint (not there, not deleted, or collected).
        """
        return self._index.read(lambda records: references.resolve_deleted(reference, records))

    def deleted_among(self, checkpoints: Iterable[str]) -> list[Checkpoint]:
        """Those of `checkpoints` (ids) that are deleted, and not collected yet."""

        def work(records: Records) -> list[Checkpoint | None]:
            return [records.by_id(one, deleted=True) for one in checkpoints]

        return [one for one in self._index.read(work) if one is not None and one.state is State.DELETED]

    def restore(self, checkpoint: str) -> Checkpoint:
        """Undo a delete: the checkpoint is what it was before, with those of its tags that no other one got meanwhile.

        A job that was deleted is there again, with an empty working tree. Errors: UnknownCheckpoint (also: collected).
        """
        head = known(checkpoint, self._index.read(lambda records: records.by_id(checkpoint, deleted=True)))
        if head.job:
            self.ensure_job(head.job, head.created_ns)
        self._mark(lambda records: _mark_restored(checkpoint, records))
        return self._head(checkpoint)

    # what they have in common

    def _mark(self, work: Callable[[Records], list[str]], point: str = "mark:manifest", *, sync: bool = True) -> None:
        """Do `work` in one transaction, and bring up the manifests' files of the checkpoints (ids) that it changed."""
        for one in self._index.write(work):
            with suppress(OSError):  # the index has the say; and on a full disk a delete must not fail
                self._follow(one, point, sync=sync)

    def _with_reserve(self, work: Callable[[], T]) -> T:
        """What `work` returns; on a full disk it is tried again with the reserve given up."""
        try:
            return work()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.layout.reserve.exists():
                raise
        self.layout.reserve.unlink(missing_ok=True)
        return work()

    def keep_reserve(self) -> None:
        """Set the reserve aside (again), where the disk has room for it. Best effort."""
        disk = os.statvfs(self.layout.root)
        if self.layout.reserve.exists() or disk.f_bavail * disk.f_frsize < ROOMY:
            return
        with suppress(OSError):
            fd = os.open(self.layout.reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE)
            finally:
                os.close(fd)

    def _head(self, checkpoint: str) -> Checkpoint:
        return known(checkpoint, self._index.read(lambda records: records.by_id(checkpoint)))

    def _lease_path(self, checkpoint: str) -> Path:
        return self.layout.lock(f"{LEASE}{checkpoint}")


def known(reference: str, found: T | None) -> T:
    if found is None:
        raise UnknownCheckpoint(reference)
    return found


def place(head: Checkpoint) -> str:
    return head.place


def _changed(head: Checkpoint, records: Records) -> str:
    """Record what a checkpoint is now; its id. Errors: CorruptRecord (of what it is made of)."""
    known(head.id, records.manifest(head.id, deleted=True))
    records.put_checkpoint(head)
    return head.id


def _mark_restored(checkpoint: str, records: Records) -> list[str]:
    head = known(checkpoint, records.by_id(checkpoint, deleted=True))
    if head.state is not State.DELETED:
        return []
    tags = tuple(tag for tag in head.tags if records.tagged(tag) is None)
    for tag in tags:
        records.put_tag(tag, head.id)
    before = head.deleted_from or (State.AVAILABLE if head.failure is None or head.promoted else State.FAILED)
    restored = replace(head, state=before, tags=tags, deleted_ns=None, deleted_from=None)
    queue(restored, records)
    return [_changed(restored, records)]
