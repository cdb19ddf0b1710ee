"""Copy a checkpoint's files out of the store into a directory, each byte checked against its digest.

Everything is first written into a directory of our own, on the destination's filesystem, and only then moved to its
names: a corrupt blob, a full disk or Ctrl-C leaves the destination as it was. The manifest is not trusted: no name may
leave the destination, and no symlink below it is ever followed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from blake3 import blake3
from msgspec import Struct

from fuse_ckpt.errors import Busy, Corrupt, CorruptBlob, FuseCkptError, NotFound, UsageError
from fuse_ckpt.model import Checkpoint, Entry, Kind
from fuse_ckpt.store import Store

Progress = Callable[[int, int], None]  # bytes done, bytes in all

_CHUNK = 4 << 20  # bytes; read, hashed and written at once
_NAME_KEPT = 200  # bytes of the destination's name in its partial's name: with ".partial-<id>" it stays below NAME_MAX
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Fetched(Struct, frozen=True):
    """What was written: the directory, the number of files in it that came from the checkpoint, and their bytes."""

    path: Path
    files: int
    size: int


def fetch(
    store: Store,
    checkpoint: Checkpoint,
    destination: Path,
    *,
    include: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Write the checkpoint's files (those that fit one of the globs `include`, if there are any) into `destination`.

    `destination` must be absent or empty; with `force` it may hold other files, and those of the same names are
    replaced. Raises UsageError (destination in use), NotFound (no file fits), Busy (another fetch writes there),
    UnknownCheckpoint, CorruptBlob, Corrupt and OSError.
    """
    with store.lease(checkpoint.id):
        entries = _chosen(store.manifest(checkpoint.id).entries, include)
        fresh = _is_fresh(destination, checkpoint.id, force)
        with _partial(destination, checkpoint.id, fresh) as (partial, partial_fd):
            _write_all(store, entries, partial_fd, progress)
            if fresh:
                partial.rename(destination)
            else:
                _merge(entries, partial_fd, destination)
    files = [entry for entry in entries if entry.kind is Kind.FILE]
    return Fetched(destination, len(files), sum(entry.size for entry in files))


def _chosen(entries: Sequence[Entry], include: Sequence[str]) -> list[Entry]:
    for entry in entries:
        if any(part in ("", ".", "..") or "\0" in part for part in entry.path.split("/")):
            raise Corrupt(f"The checkpoint's manifest names {entry.path!r}, which is no path inside a directory.")
    if not include:
        return list(entries)
    chosen = [entry for entry in entries if entry.kind is not Kind.DIRECTORY and _fits(entry.path, include)]
    if not chosen:
        raise NotFound(f"No file of the checkpoint fits {' '.join(include)}: see its files with checkpoint inspect.")
    return chosen


def _fits(path: str, globs: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, glob) or fnmatchcase(name, glob) for glob in globs)


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
    """An empty directory on the destination's filesystem, gone at the end unless it was renamed away.

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
    fd = os.open(path, _DIRECTORY)
    try:
        _claim(fd, path)
        try:
            yield path, fd
        finally:
            if os.path.lexists(path):
                shutil.rmtree(path)
    finally:
        os.close(fd)


def _claim(fd: int, path: Path) -> None:
    """Lock the partial directory against another fetch, and empty it of what a killed one left."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"Another fetch is writing {path}: wait for it, or choose another --destination.") from None
    for item in os.scandir(fd):
        if item.is_dir(follow_symlinks=False):
            shutil.rmtree(item.name, dir_fd=fd)
        else:
            os.unlink(item.name, dir_fd=fd)


def _write_all(store: Store, entries: Sequence[Entry], root_fd: int, progress: Progress | None) -> None:
    total = sum(entry.size for entry in entries if entry.kind is Kind.FILE)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for entry in sorted(entries, key=_order):
        if entry.kind is Kind.DIRECTORY:
            with _opened(root_fd, entry.path, create=True):
                continue
        with _parent(root_fd, entry.path, create=True) as (parent_fd, name):
            if entry.kind is Kind.SYMLINK:
                os.symlink(entry.target, name, dir_fd=parent_fd)
                os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent_fd, follow_symlinks=False)
            else:
                _write_file(store, entry, parent_fd, name, advance)
    for entry in sorted(entries, key=lambda e: e.path.count("/"), reverse=True):
        if entry.kind is Kind.DIRECTORY:
            with _opened(root_fd, entry.path) as fd:
                _restore(fd, entry, 0o700)
    os.chmod(root_fd, 0o777 & ~_umask())


def _order(entry: Entry) -> tuple[bool, str]:
    # Symlinks last: nothing is ever written below a name that is a symlink.
    return entry.kind is Kind.SYMLINK, entry.path


def _write_file(store: Store, entry: Entry, parent_fd: int, name: str, advance: Callable[[int], None]) -> None:
    """Copy the entry's blob to `name` and compare the digest of the bytes that went through our hands."""
    digest = blake3()
    size = 0
    with _blob(store, entry) as source:
        target = os.open(name, _CREATE, 0o600, dir_fd=parent_fd)
        try:
            while chunk := os.read(source, _CHUNK):
                digest.update(chunk)
                _write(target, chunk)
                size += len(chunk)
                advance(len(chunk))
            os.fdatasync(target)
            _restore(target, entry, 0o400)
        finally:
            os.close(target)
    if size != entry.size or digest.hexdigest() != entry.digest:
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


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _restore(fd: int, entry: Entry, at_least: int) -> None:
    os.fchmod(fd, (entry.mode & 0o777) | at_least)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _umask() -> int:
    # There is no way to ask without setting it; the command line has one thread.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _opened(root_fd: int, path: str, *, create: bool = False) -> Iterator[int]:
    """A descriptor of the directory `path` below `root_fd`, reached without following a symlink."""
    fd = os.dup(root_fd)
    try:
        for part in path.split("/") if path else ():
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
            fd, outer = os.open(part, _DIRECTORY, dir_fd=fd), fd
            os.close(outer)
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _parent(root_fd: int, path: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
    parent, _, name = path.rpartition("/")
    with _opened(root_fd, parent, create=create) as fd:
        yield fd, name


def _merge(entries: Sequence[Entry], partial_fd: int, destination: Path) -> None:
    """Move what was written to its names below an existing destination, file by file."""
    root_fd = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for entry in sorted(entries, key=_order):
            if entry.kind is Kind.DIRECTORY:
                with _opened(root_fd, entry.path, create=True):
                    continue
            with (
                _parent(partial_fd, entry.path) as (source, name),
                _parent(root_fd, entry.path, create=True) as (to, _),
            ):
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=to)
    except (NotADirectoryError, IsADirectoryError) as error:
        raise FuseCkptError(
            f"{destination / entry.path} is in the way (a symlink, or a directory where a file belongs): "
            "remove it, or choose another --destination."
        ) from error
    finally:
        os.close(root_fd)
