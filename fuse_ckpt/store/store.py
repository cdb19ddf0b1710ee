"""The store as the other rooms see it."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection as Bag
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Self, TypeVar

import uuid_utils
from msgspec.structs import replace

from fuse_ckpt.errors import CommitFailed
from fuse_ckpt.faults import fault
from fuse_ckpt.model import Checkpoint, InodeKey, Kind, Manifest, NewCheckpoint, State

from . import ids, locks, references, upkeep
from .blobs import Adopted
from .checks import Checks
from .connections import Connections
from .ending import Ending
from .format import prepare
from .index import MAP_SIZE, Index
from .layout import Layout
from .lifecycle import known
from .outbox import Outbox
from .pruning import NUMBERED_NS, forget_numbers
from .queueing import queue
from .records import Records, blob_sizes

T = TypeVar("T")

NOT_DELETED = frozenset(State) - {State.DELETED}


class Store(Ending, Checks, Connections, Outbox):
    """A store that is open. Sync, for any thread of the process that opened it; for fork() see `before_fork`.

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

    def before_fork(self) -> None:
        """Just before a fork() after which the child, too, is to read this store; then `after_fork` in both."""
        self._index.before_fork()

    def after_fork(self, *, child: bool) -> None:
        """The child's is its own from now on, and opened when it is used; what is being committed is the parent's."""
        self._index.after_fork(child=child)

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

    def checkpoints(
        self,
        job: str | None = None,
        states: Bag[State] | None = None,
        limit: int | None = None,
        name: str | None = None,
    ) -> list[Checkpoint]:
        """The checkpoints of one job, or of all, in id order; all but the deleted ones unless `states` says which.

        `limit`: the newest so many alone; `name`: those alone whose NAME fits the glob.
        """
        wanted = NOT_DELETED if states is None else states

        def work(records: Records) -> list[Checkpoint]:
            return [*islice(records.newest_first(job, wanted, name), limit)][::-1]

        return self._index.read(work)

    def smallest(self, job: str | None, states: Bag[State], by: str, limit: int) -> list[Checkpoint]:
        """The first `limit` checkpoints in the order of one of SORTABLE; those that do not say come last."""
        return self._index.read(lambda records: records.smallest(job, states, by, limit))

    def ids(self, begin: str = "", limit: int | None = None) -> list[str]:
        """The first `limit` ids that begin so, in order, also of deleted ones; far cheaper than the checkpoints."""
        return self._index.read(lambda records: [*islice(records.ids(begin), limit)])

    def resumed(self, job: str) -> list[Checkpoint]:
        """The checkpoints of a job, deleted ones too, that say which one they were resumed from."""
        return self._index.read(lambda records: [*records.resumed(job)])

    def checkpoint(self, checkpoint: str) -> Checkpoint:
        """Errors: UnknownCheckpoint, also for a deleted one."""
        return known(checkpoint, self._index.read(lambda records: records.by_id(checkpoint)))

    def manifest(self, checkpoint: str) -> Manifest:
        """Errors: UnknownCheckpoint, also for a deleted one."""
        return known(checkpoint, self._index.read(lambda records: records.manifest(checkpoint)))

    def newest(self, job: str, name: str, *, deleted: bool = False) -> Manifest | None:
        """The newest checkpoint of (job, name) that is not deleted, whatever its state; with `deleted` the newest."""

        def work(records: Records) -> Manifest | None:
            found = records.newest(job, name, deleted=deleted)
            return None if found is None else records.manifest(found.id, deleted=deleted)

        return self._index.read(work)

    def latest(self, job: str, *, here: bool = False) -> Checkpoint | None:
        """The newest available one that is resumable, else the newest available one that holds weights.

        `here`: of those alone whose bytes are all here.
        """

        def work(records: Records) -> Checkpoint | None:
            away = records.away() if here else set()
            offered = records.offered(job, newest_first=True)
            found = references.latest(one for one in offered if one[0] not in away)
            return None if found is None else records.by_id(found)

        return self._index.read(work)

    def best(self, job: str) -> Checkpoint | None:
        """The available one with weights of the lowest evaluation loss, else training loss; of equals the newest."""

        def work(records: Records) -> Checkpoint | None:
            found = references.best(records.offered(job))
            return None if found is None else records.by_id(found)

        return self._index.read(work)

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
            self._index.write(lambda records: _record(manifest, new, records))
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

    # upkeep

    def recover(self) -> None:
        """Clear away what crashes left: blobs and manifests without a record, and tmp/. Nothing while somebody commits.

        Where manifests without a record are more than crashes can leave, the index was lost: then all is left as it is
        and `problems` says so.
        """
        upkeep.recover(self.layout, self._index)
        now_ns = time.time_ns()
        if self._index.read(lambda records: records.old_generations(now_ns - NUMBERED_NS)):
            with suppress(OSError):  # on a full disk it can wait
                self._index.write(lambda records: forget_numbers(records, now_ns))
        self.keep_reserve()


def _record(manifest: Manifest, new: NewCheckpoint, records: Records) -> None:
    records.add(manifest, new.sealed)
    queue(manifest.checkpoint, records, new=True)


def _describe(new: NewCheckpoint) -> Checkpoint:
    """The checkpoint of `new`, without what only the moment of publishing can tell: id, ordinal, commit time."""
    files = [entry for entry in new.entries if entry.kind is Kind.FILE]
    return Checkpoint(
        id="", job=new.job, name=new.unit.name, shape=new.unit.shape, ordinal=0, node=new.node,
        state=State.AVAILABLE if new.failure is None else State.FAILED, created_ns=new.created_ns, committed_ns=0,
        size=sum(entry.size for entry in files), files=len(files), metadata=new.metadata, parent=new.parent,
        run=new.run, failure=new.failure, draft=new.draft, origin=new.origin,
    )  # fmt: skip


def _number(checkpoint: Checkpoint, records: Records) -> Checkpoint:
    step = 1 + secrets.randbelow(ids.STEP_MAX)
    return replace(
        checkpoint,
        id=ids.after(records.newest_id(), str(uuid_utils.uuid7()), step),
        ordinal=records.last_ordinal(checkpoint.job, checkpoint.name) + 1,
        committed_ns=time.time_ns(),
    )
