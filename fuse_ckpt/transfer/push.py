"""Take files from elsewhere into the store, as a checkpoint that a person gave a name.

They are first copied into a spool, a directory of the store that only this push uses, looked at there as a training's
files are looked at, and then committed as those are: by a link. What is pushed stays its owner's. A push that was
interrupted leaves its spool, and the same push goes on with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from blake3 import blake3
from msgspec.structs import replace

from fuse_ckpt import metadata
from fuse_ckpt.errors import Busy, Corrupt, FuseCkptError, InvalidName, StorageFailed
from fuse_ckpt.model import Checkpoint, Entry, Kind, Metadata, NewCheckpoint, Origin, Shape, Unit
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import copying, lanes, names, places, selection, tree

SPOOL_KEPT = 7 * 86_400.0  # seconds that what an interrupted push left is kept for the next one


class Source(Protocol):
    """What can be pushed: entries (their digests "" where they are not known), and a way to read the files."""

    @property
    def lanes(self) -> lanes.Counts: ...
    @property
    def entries(self) -> Sequence[Entry]: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def origin(self) -> Origin: ...
    @property
    def identity(self) -> str: ...
    @property
    def created_ns(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def said(self) -> Metadata | None: ...
    @property
    def failure(self) -> str | None: ...
    def shares(self, entry: Entry, target: int) -> bool: ...
    def read_into(self, entry: Entry, target: int, advance: copying.Advance) -> str: ...


def push(
    store: Store, name: str, source: Source, *, force: bool = False, progress: copying.Progress | None = None
) -> Checkpoint:
    """Commit the source's files as a checkpoint of no job, called `name`; the n-th of that name is `name`@n.

    Files that are not whole are refused; with `force` they become a `failed` checkpoint. Errors: InvalidName, Busy
    (the same push is under way), Corrupt (bytes without the digest that their manifest names), FuseCkptError (not
    whole, no room, changed meanwhile), StorageFailed, OSError.
    """
    from fuse_ckpt.staging import fault_of  # with it comes trio, and a fetch needs neither

    names.check_checkpoint_name(name)
    if (tagged := store.tagged(name)) is not None:  # a tag is the stronger reference
        raise InvalidName(f"{name} is a tag of {tagged.id}: choose another name, or untag that.")
    selection.check_inside(source.entries)
    with (
        places.told_where_full(f"The store {store.layout.root}", "make room, with checkpoint delete and gc say"),
        _spool(store, f"{name}\n{source.identity}") as (spool, spool_fd),
    ):
        entries = _fill(source, spool, spool_fd, progress)
        paths = [entry.path for entry in entries if entry.kind is not Kind.DIRECTORY]
        failure = source.failure or fault_of(spool_fd, {path: path for path in paths})
        if failure is not None and not force:
            raise FuseCkptError(
                f"Not pushed, for it is not whole: {failure} (--force keeps it as a failed checkpoint)."
            )
        return _commit(store, name, source, spool, entries, failure)


@contextlib.contextmanager
def _spool(store: Store, what: str) -> Iterator[tuple[Path, int]]:
    """A directory for one push. It stays after an interruption, and where the other side failed; else it goes."""
    _sweep(store.layout.incoming)
    path = store.layout.incoming / blake3(what.encode(errors="surrogateescape")).hexdigest(length=16)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    fd = os.open(path, tree.DIRECTORY)
    try:
        if not _lock(fd):
            raise Busy("The same push is under way: wait for it.")
        if not tree.is_at(fd, path):
            raise Busy("The same push has just ended: checkpoint list shows what it made; else try again.")
        try:
            yield path, fd
        except StorageFailed:
            raise
        except Exception:
            shutil.rmtree(path)
            raise
        shutil.rmtree(path)
    finally:
        os.close(fd)


def _sweep(directory: Path) -> None:
    """Remove the spools that nobody has come back for."""
    before = time.time() - SPOOL_KEPT
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            fd = os.open(path, tree.DIRECTORY)
            try:
                if os.fstat(fd).st_mtime < before and _lock(fd):
                    shutil.rmtree(path)
            finally:
                os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fill(source: Source, spool: Path, spool_fd: int, progress: copying.Progress | None) -> list[Entry]:
    """Bring the spool to hold just the source's files and symlinks."""
    files = {entry.path: entry for entry in source.entries if entry.kind is Kind.FILE}
    tree.prune(spool_fd, files, {above for path in files for above in selection.parents(path)})
    advance = copying.counter(selection.total_size(source.entries), progress)
    missing = [entry for entry in files.values() if not _is_there(spool_fd, entry, advance)]
    places.check_room(spool.parent, selection.total_size(missing), lambda fd: source.shares(_largest(missing), fd))
    stop = lanes.Stop()
    take = partial(_take, source, spool_fd, stop.between(advance))
    lanes.run_by_size(source.lanes, missing, lambda entry: entry.size, take, stop)
    for entry in source.entries:
        if entry.kind is Kind.SYMLINK:
            with tree.parent(spool_fd, entry.path, create=True) as (above, name):
                os.symlink(entry.target, name, dir_fd=above)
    return list(source.entries)


def _largest(entries: Sequence[Entry]) -> Entry:
    return max(entries, key=lambda entry: entry.size)


def _is_there(spool_fd: int, entry: Entry, advance: copying.Advance) -> bool:
    """Whether an earlier push has taken this very file; the time is given to it last. Another one is removed."""
    with tree.file_at(spool_fd, entry.path) as fd:
        if fd is None:
            return False
        status = os.fstat(fd)
        if (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns):
            advance(entry.size)
            return True
    with tree.parent(spool_fd, entry.path) as (above, name):
        os.unlink(name, dir_fd=above)
    return False


def _take(source: Source, spool_fd: int, advance: copying.Advance, entry: Entry) -> None:
    with tree.parent(spool_fd, entry.path, create=True) as (above, name):
        target = os.open(name, tree.CREATE, 0o400, dir_fd=above)
        try:
            digest = source.read_into(entry, target, advance)
            if entry.digest not in ("", digest):
                raise Corrupt(
                    f"{entry.path} is not what its manifest says: its bytes have another digest. Nothing was pushed."
                )
            os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(target)


def _commit(
    store: Store, name: str, source: Source, spool: Path, entries: Sequence[Entry], failure: str | None
) -> Checkpoint:
    with store.committing():
        adopted = [_adopt(store, spool, entry) for entry in entries]
        said = metadata.extract(name, {entry.path: _opener(store, entry) for entry in adopted if entry.digest})
        if said.step is None:
            said = replace(said, step=source.said.step if source.said else metadata.extract(source.label, {}).step)
        return store.publish(
            NewCheckpoint(
                job="", unit=Unit(name, source.shape), node="0", created_ns=source.created_ns, metadata=said,
                entries=tuple(adopted), failure=failure, origin=source.origin,
            )
        )  # fmt: skip


def _adopt(store: Store, spool: Path, entry: Entry) -> Entry:
    if entry.kind is not Kind.FILE:
        return entry
    adopted = store.adopt(spool / entry.path)
    if adopted.size != entry.size or entry.digest not in ("", adopted.digest):
        raise Corrupt(f"{entry.path} is not what was read: the disk of the store changed it. Nothing was pushed.")
    return replace(entry, digest=adopted.digest)


def _opener(store: Store, entry: Entry) -> Callable[[], BinaryIO]:
    def opened() -> BinaryIO:
        return open(store.blob_path(entry.digest), "rb")

    return opened
