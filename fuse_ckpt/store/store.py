"""The store as the other rooms see it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import uuid_utils
from msgspec.structs import replace

from fuse_ckpt.errors import CheckpointLeased, CommitFailed, CorruptRecord, UnknownCheckpoint
from fuse_ckpt.faults import fault
from fuse_ckpt.model import Checkpoint, InodeKey, Kind, Manifest, NewCheckpoint, State

from . import ids, locks, references, upkeep
from .blobs import Adopted
from .format import prepare
from .index import MAP_SIZE, Index
from .layout import Layout
from .locks import Lease
from .records import Records, blob_sizes
from .revisions import Revisions

T = TypeVar("T")

NOT_DELETED = frozenset(State) - {State.DELETED}


class Store(Revisions):
    """A store that is open. Sync, for any thread of the process that opened it; it does not survive fork().

    Every method is atomic for other threads and processes. Besides the errors that each names, all of them may raise
    CorruptRecord (a record fails its checksum) and OSError (the disk; ENOSPC where it is full).
    """

    @classmethod
    def open(cls, root: Path, *, create: bool = True, map_size: int = MAP_SIZE) -> Store:
        """Open the store at `root`, made where it is missing and `create` is set. Errors: StoreUnusable."""
        layout = Layout(Path(os.path.abspath(root)))
        prepare(layout, create=create)
        return cls(layout, Index(layout.index, layout.lock("index"), map_size))

    def close(self) -> None:
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def generation(self) -> int:
        """A number that rises with each change of the index by any process. Cheap, and never waits."""
        return self._index.generation()

    @property
    def problems(self) -> list[str]:
        """A sentence for each damaged record that a listing had to leave out so far."""
        return list(self._index.problems)

    # checkpoints

    def checkpoints(self, job: str | None = None, states: Collection[State] | None = None) -> list[Checkpoint]:
        """The checkpoints of one job, or of all, in id order; all but the deleted ones unless `states` says which."""
        wanted = NOT_DELETED if states is None else states
        return self._index.read(lambda records: [one for one in records.checkpoints(job) if one.state in wanted])

    def checkpoint(self, checkpoint: str) -> Checkpoint:
        """Errors: UnknownCheckpoint, also for a deleted one."""
        return _known(checkpoint, self._index.read(lambda records: records.by_id(checkpoint)))

    def manifest(self, checkpoint: str) -> Manifest:
        """Errors: UnknownCheckpoint, also for a deleted one."""
        return _known(checkpoint, self._index.read(lambda records: records.manifest(checkpoint)))

    def newest(self, job: str, name: str) -> Manifest | None:
        """The newest checkpoint of (job, name) that is not deleted, whatever its state."""

        def work(records: Records) -> Manifest | None:
            found = records.newest(job, name)
            return None if found is None else records.manifest(found.id)

        return self._index.read(work)

    def latest(self, job: str) -> Checkpoint | None:
        """The newest available one that is resumable, else the newest available one that holds weights."""
        return self._index.read(lambda records: references.latest(records.checkpoints(job)))

    def best(self, job: str) -> Checkpoint | None:
        """The available one of the lowest finite evaluation loss; of equals the newest."""
        return self._index.read(lambda records: references.best(records.checkpoints(job)))

    def resolve(self, reference: str) -> Checkpoint:
        """The checkpoint that a person means. Errors: InvalidReference (empty, ambiguous), UnknownCheckpoint."""
        return self._index.read(lambda records: references.resolve(reference, records))

    # commit

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Hold off the removal of blobs that no record names: adopt and publish belong into one such block."""
        with locks.shared(self.layout.lock("gc")):
            yield

    def adopt(self, source: Path) -> Adopted:
        """Make the bytes of the file `source`, to which nobody writes, a durable blob; by a link, where that can be.

        Where a blob has those bytes already, the file stays as it is (`linked` is False). After an OSError of its fsync
        the file must be written again: the kernel drops what it could not write, and the next fsync would say nothing.
        Errors: CommitFailed (not a regular file, changed meanwhile), OSError.
        """
        return self._blobs.adopt(source)

    def adopt_all(self, sources: Sequence[Path]) -> list[Adopted]:
        """`adopt` for many: in their order, and faster than one by one. After an error some of them are adopted."""
        return self._blobs.adopt_all(sources)

    def adopt_copy(self, source: Path) -> Adopted:
        """As `adopt`, for a file whose fsync has failed before: its bytes are written anew. `linked` is False."""
        return self._blobs.adopt_copy(source)

    def publish(self, new: NewCheckpoint) -> Checkpoint:
        """Make an adopted checkpoint exist: mint its id, write its manifest, record it in one transaction.

        Id order is the order of publishing, over all processes, also when the clock goes back. After an error the
        checkpoint does not exist (a manifest may be left for recover). Errors: CommitFailed (no such blob), OSError.
        """
        draft = Manifest(_describe(new), new.entries, new.companions)
        sizes = blob_sizes(draft)
        missing = self._blobs.first_missing(sizes)
        if missing is not None:
            raise CommitFailed(f"Blob {missing} of {new.job}/{new.unit.name} is not in the store.")
        with locks.exclusive(self.layout.lock("publish")):
            head = self._index.read(lambda records: _number(draft.checkpoint, records))
            manifest = replace(draft, checkpoint=head)
            fault("publish:manifest")
            self._write_manifest(manifest)
            fault("publish:txn")
            self._index.write(lambda records: records.add(manifest, new.sealed))
            fault("publish:done")
        self._blobs.recorded(sizes)
        return head

    def blob_path(self, digest: str) -> Path:
        """Where the bytes of a digest lie. Never write to it."""
        return self.layout.blob(digest)

    def known_digest(self, key: InodeKey) -> str | None:
        """The digest whose blob is that very inode, if it is sealed."""
        return self.sealed_inodes((key,)).get(key)

    def sealed_inodes(self, keys: Iterable[InodeKey]) -> dict[InodeKey, str]:
        """Those of `keys` that are sealed, and the digest that each is the blob of."""

        def work(records: Records) -> dict[InodeKey, str | None]:
            return {key: records.digest_of(key) for key in keys}

        keys = list(keys)
        recorded = self._index.read(work)
        return {key: digest for key, digest in recorded.items() if digest and self._blobs.is_inode(digest, key)}

    # leases and deletion

    def lease(self, checkpoint: str) -> Lease:
        """Keep a checkpoint from being deleted until the lease is closed, or we die, and from being amended for ever.

        Errors: UnknownCheckpoint.
        """
        self.checkpoint(checkpoint)
        lease = locks.lease(self._lease_path(checkpoint), checkpoint)
        try:
            self.checkpoint(checkpoint)  # again: a delete may have come first
            with suppress(OSError):  # who reads may go on where nothing can be written; at worst a late file is added
                self.settle(checkpoint)
        except BaseException:
            lease.close()
            raise
        return lease

    def delete(self, checkpoints: Sequence[str]) -> None:
        """Delete all of `checkpoints` (ids), or none. Their bytes stay until they are collected.

        Errors: UnknownCheckpoint, CheckpointLeased.
        """
        with ExitStack() as held:
            unique = list(dict.fromkeys(checkpoints))
            for one in unique:
                head = self.checkpoint(one)
                lock = locks.try_exclusive(self._lease_path(one))
                if lock is None:
                    raise CheckpointLeased(
                        f"Checkpoint {one} ({head.job}/{head.name}) is in use by a run: end that first."
                    )
                held.enter_context(lock)
                held.callback(lock.path.unlink, missing_ok=True)  # while it is held: who waits for it opens a new one
            for manifest in self._index.write(lambda records: [_mark_deleted(one, records) for one in unique]):
                fault("delete:manifest")
                with suppress(OSError):  # the index has the say; and on a full disk a delete must not fail
                    self._write_manifest(manifest)

    # upkeep

    def recover(self) -> None:
        """Clear away what crashes left: blobs and manifests without a record, and tmp/. Nothing while somebody commits.

        Where manifests without a record are more than crashes can leave, the index was lost: then all is left as it is
        and `problems` says so.
        """
        upkeep.recover(self.layout, self._index)

    def verify(self, checkpoints: Iterable[str] | None = None) -> list[str]:
        """Read the blobs of `checkpoints` (ids; default: all available ones, and every record) again.

        Returns a sentence for each thing that is not as it was stored. Errors: UnknownCheckpoint.
        """
        ids_wanted = (
            [one.id for one in self.checkpoints(states={State.AVAILABLE})] if checkpoints is None else checkpoints
        )
        problems = dict.fromkeys(self._index.read(Records.damage) if checkpoints is None else ())
        manifests = []
        for one in ids_wanted:
            try:
                manifests.append(self.manifest(one))
            except UnknownCheckpoint:
                if checkpoints is not None:
                    raise  # else it was deleted meanwhile
            except CorruptRecord as error:
                problems[str(error)] = None
        digests = self._index.read(Records.digests)
        return [*problems, *upkeep.verify(self.layout, manifests, digests)]

    def _lease_path(self, checkpoint: str) -> Path:
        return self.layout.lock(f"lease-{checkpoint}")


def _known(reference: str, found: T | None) -> T:
    if found is None:
        raise UnknownCheckpoint(reference)
    return found


def _describe(new: NewCheckpoint) -> Checkpoint:
    """The checkpoint of `new`, without what only the moment of publishing can tell: id, ordinal, commit time."""
    files = [entry for entry in new.entries if entry.kind is Kind.FILE]
    return Checkpoint(
        id="", job=new.job, name=new.unit.name, shape=new.unit.shape, ordinal=0, node=new.node,
        state=State.AVAILABLE if new.failure is None else State.FAILED, created_ns=new.created_ns, committed_ns=0,
        size=sum(entry.size for entry in files), files=len(files), metadata=new.metadata, parent=new.parent,
        run=new.run, failure=new.failure, draft=new.draft,
    )  # fmt: skip


def _number(checkpoint: Checkpoint, records: Records) -> Checkpoint:
    step = 1 + secrets.randbelow(ids.STEP_MAX)
    return replace(
        checkpoint,
        id=ids.after(records.newest_id(), str(uuid_utils.uuid7()), step),
        ordinal=records.last_ordinal(checkpoint.job, checkpoint.name) + 1,
        committed_ns=time.time_ns(),
    )


def _mark_deleted(checkpoint: str, records: Records) -> Manifest:
    manifest = _known(checkpoint, records.manifest(checkpoint))
    deleted = replace(manifest.checkpoint, state=State.DELETED)
    records.put_checkpoint(deleted)
    return replace(manifest, checkpoint=deleted)
