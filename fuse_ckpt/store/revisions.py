"""The half of the store that changes what it holds of a checkpoint: settled, amended, promoted.

What a checkpoint is made of changes by an amendment alone, which adds files to one that nobody has relied on yet.
"""

from __future__ import annotations

from contextlib import suppress

from msgspec.structs import replace

from fuse_ckpt.errors import CommitFailed, UnknownCheckpoint, UsageError
from fuse_ckpt.faults import fault
from fuse_ckpt.model import Checkpoint, Kind, Manifest, NewCheckpoint, State

from . import locks
from .blobs import Blobs
from .codec import manifest_to_json
from .durable import replace_file
from .index import Index
from .jobs import Jobs
from .layout import Layout
from .queueing import queue
from .records import Records, blob_sizes


class Revisions(Jobs):
    """Checkpoints as they change; see `Store` for what all methods have in common."""

    def __init__(self, layout: Layout, index: Index) -> None:
        super().__init__(layout, index)
        self._blobs = Blobs(layout, lambda digest: index.read(lambda records: records.has_blob(digest)))

    def settle(self, checkpoint: str) -> Checkpoint:
        """Somebody relies on the checkpoint as it is (leased, fetched, exported): it is amended no more.

        Errors: UnknownCheckpoint.
        """
        found = self._index.read(lambda records: records.by_id(checkpoint))
        if found is None:
            raise UnknownCheckpoint(checkpoint)
        return found if found.settled else self._index.write(lambda records: _settled(checkpoint, records))

    def amend(self, seen: Checkpoint, new: NewCheckpoint) -> Checkpoint | None:
        """Add the entries, companions and sealed inodes of `new`, whose blobs are adopted, to the checkpoint `seen`.

        It keeps its id, its times and all that it holds; its revision rises; metadata, state and draft are `new`'s.
        None, and nothing is changed, where it is settled, deleted, or not as it was `seen`; after an error nothing is
        changed either. Errors: CommitFailed (no such blob), OSError.
        """
        missing = self._blobs.first_missing(blob_sizes(Manifest(seen, new.entries, new.companions)))
        if missing is not None:
            raise CommitFailed(f"Blob {missing} of {new.job}/{new.unit.name} is not in the store.")
        with locks.exclusive(self.layout.lock("publish")), self._marking():
            before = self._index.read(lambda records: _amendable(seen, records))
            if before is None:
                self._rewrite_manifest(seen.id)
                return None
            after = _amended(before, new)
            try:
                fault("amend:manifest")
                self._write_manifest(after)
                fault("amend:txn")
                done = self._index.write(lambda records: _amend(seen, after, new, records))
            except Exception:
                self._rewrite_manifest(seen.id)
                raise
            fault("amend:done")
            if not done:
                self._rewrite_manifest(seen.id)
                return None
        self._blobs.recorded(blob_sizes(after))
        return after.checkpoint

    def promote(self, checkpoint: str) -> Checkpoint:
        """A person overrules `failed`: available from now on; why it failed stays with it.

        One that is promoted already stays as it is. Errors: UnknownCheckpoint, UsageError (it is not failed).
        """
        promoted = self._index.write(lambda records: _promoted(checkpoint, records))
        with suppress(OSError):  # the index has the say
            self._follow(checkpoint, "promote:manifest")
        return promoted

    def _follow(self, checkpoint: str, point: str, *, sync: bool = True) -> None:
        """After a change of a checkpoint's record: make its manifest's file say what the index says now.

        Not what was changed: of two that change it at once, the first there may be the last here. `point`: the fault
        point before.
        """
        fault(point)
        with self._marking():
            manifest = self._index.read(lambda records: records.manifest(checkpoint, deleted=True))
            if manifest is None:  # collected, with its file; or the index is lost, and the file is all that there is
                return
            self._write_manifest(manifest, sync=sync)
            if not self._index.read(lambda records: records.has_id(checkpoint)):  # collected meanwhile
                self.layout.manifest(checkpoint).unlink(missing_ok=True)

    def _marking(self) -> locks.Lock:
        """Held by whoever writes the file of a checkpoint that is recorded already."""
        return locks.exclusive(self.layout.lock("manifests"))

    def _write_manifest(self, manifest: Manifest, *, sync: bool = True) -> None:
        path = self.layout.manifest(manifest.checkpoint.id)
        replace_file(path, manifest_to_json(manifest), self.layout.tmp, sync=sync)

    def _rewrite_manifest(self, checkpoint: str) -> None:
        """Make the file say what the index says: an amendment that failed, now or in a crash, may have left its own."""
        with suppress(OSError):
            manifest = self._index.read(lambda records: records.manifest(checkpoint, deleted=True))
            if manifest is not None:
                self._write_manifest(manifest)


def _settled(checkpoint: str, records: Records) -> Checkpoint:
    found = records.by_id(checkpoint)
    if found is None:
        raise UnknownCheckpoint(checkpoint)
    settled = replace(found, settled=True)
    records.put_checkpoint(settled)
    return settled


def _amendable(seen: Checkpoint, records: Records) -> Manifest | None:
    found = records.manifest(seen.id)
    if found is None or found.checkpoint.settled:
        return None
    now = found.checkpoint
    return found if (now.revision, now.draft, now.state) == (seen.revision, seen.draft, seen.state) else None


def _amended(before: Manifest, new: NewCheckpoint) -> Manifest:
    entries = tuple(sorted((*before.entries, *new.entries), key=lambda entry: entry.path))
    files = [entry for entry in entries if entry.kind is Kind.FILE]
    head = replace(
        before.checkpoint,
        revision=before.checkpoint.revision + 1,
        state=State.AVAILABLE if new.failure is None else State.FAILED,
        failure=new.failure,
        size=sum(entry.size for entry in files),
        files=len(files),
        metadata=new.metadata,
        draft=new.draft,
    )
    return Manifest(head, entries, (*before.companions, *new.companions))


def _amend(seen: Checkpoint, after: Manifest, new: NewCheckpoint, records: Records) -> bool:
    """Whether it could still be amended: a lease may have come since."""
    before = _amendable(seen, records)
    if before is None:
        return False
    # What people have said of it meanwhile stands.
    said = before.checkpoint
    head = replace(after.checkpoint, tags=said.tags, pinned=said.pinned)
    records.put_checkpoint(head)
    records.hold(replace(after, checkpoint=head), blob_sizes(before), new.sealed)
    queue(head, records)
    return True


def _promoted(checkpoint: str, records: Records) -> Checkpoint:
    manifest = records.manifest(checkpoint)
    if manifest is None:
        raise UnknownCheckpoint(checkpoint)
    head = manifest.checkpoint
    if head.promoted:
        return head
    if head.state is not State.FAILED:
        raise UsageError(f"Checkpoint {checkpoint} is {head.state.value}: only a failed one can be promoted.")
    promoted = replace(head, state=State.AVAILABLE, promoted=True, settled=True)
    records.put_checkpoint(promoted)
    queue(promoted, records)
    return promoted
