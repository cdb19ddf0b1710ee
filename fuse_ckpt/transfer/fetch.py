"""Copy a checkpoint's files out of the store into a directory, each byte checked against its digest.

Everything is first written into a directory of our own, the partial, on the destination's filesystem, and only then
moved to its names: a corrupt blob, a full disk or Ctrl-C leaves the destination as it was. A partial that was left by
an interruption is gone on with: what is there is read, and kept where its digest is right. The manifest is not trusted:
no name may leave the destination, and no symlink below it is ever followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.errors import Busy, CorruptBlob, FuseCkptError, UsageError
from fuse_ckpt.model import Checkpoint, Entry, Kind
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import copying, lanes, places, selection, tree

_NAME_KEPT = 200  # bytes of the destination's name in its partial's name: with ".partial-<id>" it stays below NAME_MAX


LANES = lanes.Counts(large=2, small=2)  # the disk has no use for more, and hashing has for a second core


class Fetched(Struct, frozen=True):
    """What was written: the directory, the number of files in it that came from the checkpoint, and their bytes.

    `kept`: how many of the files an earlier, interrupted fetch had copied already.
    """

    path: Path
    files: int
    size: int
    kept: int = 0


def fetch(
    store: Store,
    checkpoint: Checkpoint,
    destination: Path,
    *,
    include: Sequence[str] = (),
    force: bool = False,
    durable: bool = False,
    progress: copying.Progress | None = None,
) -> Fetched:
    """Write the checkpoint's files (those that fit one of the globs `include`, if there are any) into `destination`.

    `destination` must be absent or empty; with `force` it may hold other files, and those of the same names are
    replaced. `durable`: wait until all is on the disk; else a power cut soon after may take the copy away, as it may
    what cp(1) has written. Raises UsageError (destination in use, in a mount of ours or in the store), NotFound (no
    file fits), Busy (another fetch writes there), FuseCkptError (no room), UnknownCheckpoint, CorruptBlob, Corrupt and
    OSError.
    """
    with store.lease(checkpoint.id, f"a fetch, process {os.getpid()}"):
        entries = selection.chosen(store.manifest(checkpoint.id).entries, include)
        places.refuse_ours(destination, store.layout.root, "--destination")
        fresh = _is_fresh(destination, checkpoint.id, force)
        with (
            places.told_where_full(str(destination), "make room, or choose another --destination"),
            _partial(destination, checkpoint.id, fresh) as (partial, partial_fd),
        ):
            kept = _write_all(store, entries, partial, partial_fd, progress, durable=durable)
            if fresh:
                partial.rename(destination)
                if durable:
                    tree.sync_path(destination.parent)
            else:
                _merge(entries, partial_fd, destination, durable=durable)
    files = sum(entry.kind is Kind.FILE for entry in entries)
    return Fetched(destination, files, selection.total_size(entries), kept)


def _is_fresh(destination: Path, checkpoint_id: str, force: bool) -> bool:
    """True: the destination is not there yet. Raise UsageError where it is there and may not be written into."""
    try:
        mode = destination.lstat().st_mode
    except FileNotFoundError:
        return True
    if not stat.S_ISDIR(mode) and not destination.is_dir():
        raise UsageError(f"{destination} is not a directory: choose another --destination.")
    if not force and set(os.listdir(destination)) - {_inner_name(checkpoint_id)}:
        raise UsageError(
            f"{destination} is not empty: choose another --destination, or --force to replace files in it."
        )
    return False


def _inner_name(checkpoint_id: str) -> str:
    return f".partial-{checkpoint_id}"


@contextlib.contextmanager
def _partial(destination: Path, checkpoint_id: str, fresh: bool) -> Iterator[tuple[Path, int]]:
    """The directory that is written into first. After an interruption it stays, to be gone on with; else it is gone at
    the end, unless it was renamed away.

    It lies beside a destination that does not exist yet, and inside one that does, which may be a mount point.
    """
    if fresh:
        kept = os.fsdecode(os.fsencode(destination.name)[:_NAME_KEPT])
        destination.parent.mkdir(parents=True, exist_ok=True)
        path = destination.parent / f"{kept}.partial-{checkpoint_id}"
    else:
        path = destination / _inner_name(checkpoint_id)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    fd = os.open(path, tree.DIRECTORY)
    try:
        _claim(fd, path)
        if fresh and os.path.lexists(destination):
            _remove(fd, path)
            raise Busy(f"{destination} has just been made by somebody else: choose another --destination, or --force.")
        try:
            yield path, fd
        except Exception:
            _remove(fd, path)
            raise
        _remove(fd, path)
    finally:
        os.close(fd)


def _remove(fd: int, path: Path) -> None:
    """Remove the partial directory; not one that somebody else has made there since ours was renamed."""
    if tree.is_at(fd, path):
        shutil.rmtree(path)


def _claim(fd: int, path: Path) -> None:
    """Lock the partial directory against another fetch."""
    if os.fstat(fd).st_uid != os.geteuid():
        raise UsageError(f"{path} is somebody else's: remove it, or choose another --destination.")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"Another fetch is writing {path}: wait for it, or choose another --destination.") from None
    if not tree.is_at(fd, path):  # it has just become the destination of the fetch that had the lock
        raise Busy(f"Another fetch into {path} has just ended: look at what it has fetched, or try again.")
    os.fchmod(fd, 0o700)


def _write_all(
    store: Store,
    entries: Sequence[Entry],
    partial: Path,
    root_fd: int,
    progress: copying.Progress | None,
    *,
    durable: bool,
) -> int:
    """Bring the partial to hold just `entries`; the number of files that it held already."""
    files = {entry.path: entry for entry in entries if entry.kind is Kind.FILE}
    above = {path for entry in entries for path in selection.parents(entry.path)}
    tree.prune(root_fd, files, above | {entry.path for entry in entries if entry.kind is Kind.DIRECTORY})
    advance = copying.counter(selection.total_size(entries), progress)
    stop = lanes.Stop()
    present: set[str] = set()

    def look(entry: Entry) -> None:
        if _is_right(root_fd, entry, stop.between(copying.ignore)):
            present.add(entry.path)
            advance(entry.size)

    lanes.run_by_size(LANES, list(files.values()), _size_of, look, stop)
    missing = [entry for path, entry in files.items() if path not in present]
    total = selection.total_size(missing)

    def write(entry: Entry) -> None:
        alone = entry.size >= lanes.LARGE and entry.size * LANES.large > total  # the other lane is done before it
        _write_file(store, entry, root_fd, stop.between(advance), behind=alone, begin=durable)

    _check_room(store, missing, partial)
    lanes.run_by_size(LANES, missing, _size_of, write, stop)
    _write_names(entries, root_fd)
    if durable:
        tree.sync(root_fd, {*files, *above})
    return len(present)


def _size_of(entry: Entry) -> int:
    return entry.size


def _is_right(root_fd: int, entry: Entry, looked: copying.Advance) -> bool:
    """Whether an earlier fetch has written this file, whole and right; a wrong one is removed."""
    with tree.file_at(root_fd, entry.path) as fd:
        if fd is None:
            return False
        status = os.fstat(fd)
        same = status.st_nlink == 1 and status.st_size == entry.size
        if same and copying.digest_of(fd, looked) == entry.digest:
            tree.restore(fd, entry, 0o400)
            return True
    with tree.parent(root_fd, entry.path) as (above, name):
        os.unlink(name, dir_fd=above)
    return False


def _check_room(store: Store, missing: Sequence[Entry], partial: Path) -> None:
    """Raise FuseCkptError where the disk has too little room, and cannot share the blobs' own."""

    def shares(target: int) -> bool:
        with _blob(store, max(missing, key=lambda entry: entry.size)) as blob:
            return copying.clone(blob, target)

    places.check_room(partial, selection.total_size(missing), shares)


def _write_file(
    store: Store, entry: Entry, root_fd: int, advance: copying.Advance, *, behind: bool, begin: bool
) -> None:
    """Copy the entry's blob to its name and compare the digest of what then is there."""
    with _blob(store, entry) as source, tree.parent(root_fd, entry.path, create=True) as (above, name):
        target = os.open(name, tree.CREATE, 0o600, dir_fd=above)
        try:
            size = os.fstat(source).st_size
            digest = copying.copy(source, target, entry.size, advance, behind=behind, begin=begin)
            tree.restore(target, entry, 0o400)
        finally:
            os.close(target)
    if size != entry.size or digest != entry.digest:
        raise CorruptBlob(
            f"The stored bytes of {entry.path} are damaged (blob {entry.digest}): nothing was written; "
            "fetch another checkpoint, or restore the store's disk from a copy."
        )


@contextlib.contextmanager
def _blob(store: Store, entry: Entry) -> Iterator[int]:
    path = store.blob_path(entry.digest)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CorruptBlob(f"The stored bytes of {entry.path} are missing ({path}): nothing was written.") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _write_names(entries: Sequence[Entry], root_fd: int) -> None:
    """Make the directories and symlinks; then, from the innermost out, give the directories their modes and times."""
    for entry in sorted(entries, key=_order):
        if entry.kind is Kind.DIRECTORY:
            with tree.opened(root_fd, entry.path, create=True):
                continue
        if entry.kind is Kind.SYMLINK:
            with tree.parent(root_fd, entry.path, create=True) as (above, name):
                os.symlink(entry.target, name, dir_fd=above)
                os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=above, follow_symlinks=False)
    for entry in sorted(entries, key=lambda e: e.path.count("/"), reverse=True):
        if entry.kind is Kind.DIRECTORY:
            with tree.opened(root_fd, entry.path) as fd:
                tree.restore(fd, entry, 0o700)
    os.chmod(root_fd, 0o777 & ~tree.umask())


def _order(entry: Entry) -> tuple[bool, str]:
    # Symlinks last: nothing is ever written below a name that is a symlink.
    return entry.kind is Kind.SYMLINK, entry.path


def _merge(entries: Sequence[Entry], partial_fd: int, destination: Path, *, durable: bool) -> None:
    """Move what was written to its names below an existing destination, file by file."""
    root_fd = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for entry in sorted(entries, key=_order):
            if entry.kind is Kind.DIRECTORY:
                with tree.opened(root_fd, entry.path, create=True):
                    continue
            with (
                tree.parent(partial_fd, entry.path) as (source, name),
                tree.parent(root_fd, entry.path, create=True) as (to, _),
            ):
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=to)
        if durable:
            tree.sync(root_fd, {above for entry in entries for above in selection.parents(entry.path)})
    except (NotADirectoryError, IsADirectoryError) as error:
        raise FuseCkptError(
            f"{destination / entry.path} is in the way (a symlink, or a directory where a file belongs): "
            "remove it, or choose another --destination."
        ) from error
    finally:
        os.close(root_fd)
