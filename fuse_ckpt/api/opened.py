"""An open store, shared by all who opened it in this process."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import BinaryIO, Self

from fuse_ckpt.api.views import Checkpoint, Checkpoints, view
from fuse_ckpt.errors import CorruptBlob, StoreUnusable, UnknownFile
from fuse_ckpt.model import Checkpoint as Record
from fuse_ckpt.model import Entry, Kind, State
from fuse_ckpt.places import absolute, store_path
from fuse_ckpt.store import Store

_SHOWN = 5  # files that an error lists


def open_store(path: str | os.PathLike[str] | None = None) -> CheckpointStore:
    """The store at `path`; without one, FUSE_CKPT_STORE's, else the one in the home directory, as `fuse-ckpt` has it.

    Opening it again, as a notebook's cell does that is run again, is cheap and gives another object for the same store.
    Raises StoreUnusable: there is none, it is somebody else's, or it is too new.
    """
    return CheckpointStore(store_path(os.environ) if path is None else absolute(Path(os.fspath(path))))


class _Opened:
    """The stores that this process has open: a process may open one only once, and notebooks do it over and over.

    Over fork() the lock is held, and no thread is inside a store, so that the child finds nothing half done.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._stores: dict[str, tuple[Store, int]] = {}  # by real path; how many use it
        self._given_back: deque[str] = deque()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=partial(self._after_fork, child=False),
            after_in_child=partial(self._after_fork, child=True),
        )

    def take(self, path: Path) -> tuple[Store, str]:
        key = os.path.realpath(path)
        with self._lock:
            store, users = self._stores.get(key) or (Store.open(path, create=False), 0)
            self._stores[key] = (store, users + 1)
        self._close_unused()
        return store, key

    def give_back(self, key: str) -> None:
        """Also called by the garbage collector, in the middle of anything: so it waits for nobody."""
        self._given_back.append(key)
        self._close_unused()

    def _close_unused(self) -> None:
        while self._given_back and self._lock.acquire(blocking=False):  # else whoever holds it does this next
            try:
                while self._given_back:
                    self._drop(self._given_back.popleft())
            finally:
                self._lock.release()

    def _drop(self, key: str) -> None:
        store, users = self._stores[key]
        if users > 1:
            self._stores[key] = (store, users - 1)
        else:
            del self._stores[key]
            store.close()

    def _before_fork(self) -> None:
        self._lock.acquire()
        for store, _ in self._stores.values():
            store.before_fork()

    def _after_fork(self, *, child: bool) -> None:
        for store, _ in self._stores.values():
            store.after_fork(child=child)
        self._lock.release()


_opened = _Opened()


class CheckpointStore:
    """An open store, for every thread, and for children of fork() and of pickling. `close()` it, or use it in `with`.

    A REF is what the command line takes: an id or at least 4 characters of its end, a tag, `JOB:latest`, `JOB:best`,
    `JOB/NAME`, `JOB/NAME@N`; or a Checkpoint. All methods may raise CorruptRecord and OSError.
    """

    def __init__(self, path: Path) -> None:
        self._store, key = _opened.take(path)
        self._close = weakref.finalize(self, _opened.give_back, key)

    @property
    def root(self) -> Path:
        """The store's directory."""
        return self._open_one.layout.root

    @property
    def jobs(self) -> list[str]:
        """The names of the jobs, the oldest one first."""
        found = sorted(self._open_one.jobs(), key=lambda job: (job.created_ns, job.name))
        return [job.name for job in found]

    def list(self, job: str | None = None, *, name: str | None = None, status: str | None = "available") -> Checkpoints:
        """The checkpoints of a job, or of all, oldest first; `name` is a glob.

        `status`: "available", "failed" or "deleted"; None for all but the deleted ones. Raises UnknownJob, ValueError.
        """
        store = self._open_one
        if job is not None:
            store.job(job)
        found = store.checkpoints(job, states=None if status is None else {State(status)})
        return Checkpoints(self._view(one) for one in found if name is None or fnmatchcase(one.name, name))

    def get(self, ref: str | Checkpoint) -> Checkpoint:
        """The checkpoint that `ref` means, as it stands now. Raises UnknownCheckpoint, InvalidReference."""
        store = self._open_one
        return self._view(store.checkpoint(ref.id) if isinstance(ref, Checkpoint) else store.resolve(ref))

    def resolve(self, ref: str | Checkpoint) -> str:
        """The full id of what `ref` means: `JOB:latest` is another one tomorrow, its id is not. Raises as `get`."""
        return self.get(ref).id

    def open(self, ref: str | Checkpoint, file: str | None = None) -> BinaryIO:
        """One of its files, open for reading; `file` is its path in the checkpoint, and may be left out where there is
        only one. It stays readable until it is closed, whatever becomes of the checkpoint.

        One that lies in an object store alone is fetched first. Raises UnknownFile, CorruptBlob, StorageFailed, and as
        `get`.
        """
        entry = self._here(*self._entry(ref, file))
        return _opened_whole(self._open_one.blob_path(entry.digest), entry)

    def path(self, ref: str | Checkpoint, file: str | None = None) -> Path:
        """Where the bytes of one of its files lie, for what wants a path or maps it: **for reading only**.

        Its last part is not the file's name. Hold a lease as long as you use it. Raises as `open`.
        """
        entry = self._here(*self._entry(ref, file))
        path = self._open_one.blob_path(entry.digest)
        _opened_whole(path, entry).close()
        return path

    def fetch(
        self,
        ref: str | Checkpoint,
        destination: str | os.PathLike[str],
        *,
        include: Sequence[str] = (),
        force: bool = False,
        durable: bool = False,
    ) -> Path:
        """Copy its files, or those that fit a glob of `include`, into the directory `destination`, which must be new or
        empty unless `force` is set; each is checked against its digest. Returns the directory. `durable`: wait until
        all of it is on the disk; else it is there some seconds later, as with cp(1).

        Raises UsageError (destination in use), NotFound (no file fits), CorruptBlob, StorageFailed, and as `get`.
        """
        from fuse_ckpt import transfer

        found = self._open_one.checkpoint(self.resolve(ref))
        if found.remote is not None:
            entries = transfer.chosen(self._entries(found.id), include)
            self._bring(found.id, digests=[entry.digest for entry in entries if entry.digest])
        target = absolute(Path(os.fspath(destination)))
        return transfer.fetch(self._open_one, found, target, include=include, force=force, durable=durable).path

    @contextmanager
    def lease(self, ref: str | Checkpoint) -> Iterator[Checkpoint]:
        """Keep a checkpoint from being deleted as long as the block runs. Raises as `get`."""
        found = self.get(ref)
        with self._open_one.lease(found.id):
            yield found

    def close(self) -> None:
        """Close it; a second time does nothing. Open files and paths go on being readable."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[CheckpointStore], tuple[Path]]:
        return CheckpointStore, (self._store.layout.root,)

    def __repr__(self) -> str:
        state = "" if self._close.alive else " (closed)"
        return f"<CheckpointStore {self._store.layout.root}{state}>"

    @property
    def _open_one(self) -> Store:
        if not self._close.alive:
            raise StoreUnusable(f"The store {self._store.layout.root} is closed here: open_store() opens it again.")
        return self._store

    def _view(self, record: Record) -> Checkpoint:
        return view(record, self._entries)

    def _entries(self, checkpoint: str) -> Sequence[Entry]:
        if not self._open_one.is_learned(checkpoint):
            self._bring(checkpoint, whole=False)
        return self._open_one.manifest(checkpoint).entries

    def _here(self, checkpoint: str, entry: Entry) -> Entry:
        """The entry, with its bytes here."""
        store = self._open_one
        if store.checkpoint(checkpoint).remote is not None and not store.receive(checkpoint, entry.digest):
            self._bring(checkpoint, digests=[entry.digest])
        return entry

    def _bring(self, checkpoint: str, *, whole: bool = True, digests: Sequence[str] | None = None) -> None:
        """Fetch from where the checkpoint is elsewhere; by a process of its own, since children of ours may fork."""
        from fuse_ckpt import session

        session.bring_apart(self._open_one, checkpoint, whole=whole, digests=digests)

    def _entry(self, ref: str | Checkpoint, file: str | None) -> tuple[str, Entry]:
        """The id, and the entry."""
        found = self.resolve(ref)
        entries = [one for one in self._entries(found) if one.kind is Kind.FILE]
        if file is None and len(entries) == 1:
            return found, entries[0]
        for one in entries:
            if one.path == file:
                return found, one
        names = ", ".join(one.path for one in entries[:_SHOWN]) + ", …" * (len(entries) > _SHOWN)
        asked = "has several files: say which" if file is None else f"has no file {file!r}"
        raise UnknownFile(f"Checkpoint {found} {asked} ({names}).")


def _opened_whole(path: Path, entry: Entry) -> BinaryIO:
    """The blob of an entry, open; as whole as its size tells. Raises CorruptBlob."""
    try:
        opened = path.open("rb")
    except FileNotFoundError as error:
        raise CorruptBlob(f"The bytes of {entry.path} ({entry.digest}) are not in the store.") from error
    size = os.fstat(opened.fileno()).st_size
    if size == entry.size:
        return opened
    opened.close()
    raise CorruptBlob(f"The bytes of {entry.path} ({entry.digest}) are {size}, and should be {entry.size}.")
