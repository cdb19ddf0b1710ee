"""Blobs: immutable files named by the BLAKE3 digest of their bytes, made by linking, not by copying."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition
from uuid import uuid4

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import CommitFailed, NotWritten
from fuse_ckpt.faults import fault
from fuse_ckpt.model import InodeKey

from .durable import CHUNK, chunks, copy_file, fsync_directory, make_directory, same_bytes
from .layout import Layout
from .sharing import share_blocks

# Where an inode cannot take another name: too many links, another filesystem, not ours to link, unlinked (or no /proc).
NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT})

# Whether threads hash faster than one does: two do not (0.27 s a GiB in place of 0.23), and take both from training.
_HAS_CORES = len(os.sched_getaffinity(0)) > 2

SYNCERS = 8  # threads; the disk's flushes for many files at once become one (2,000 small ones: 0.3 s in place of 6 s)


class Adopted(Struct, frozen=True):
    """A file whose bytes are durably in the store."""

    digest: str
    size: int
    linked: bool  # the file's inode now is the blob: it must never be written again
    inode: InodeKey


class Blobs:
    """The blobs of a store. `is_recorded` tells whether the index names a digest."""

    def __init__(self, layout: Layout, is_recorded: Callable[[str], bool]) -> None:
        self._layout = layout
        self._is_recorded = is_recorded
        self._placed: dict[str, int] = {}  # digest → inode number, of what was placed here and has no record yet
        self._durable: set[Path] = set()  # directories whose own names this process has synced
        self._turns = Condition()
        self._busy: set[str] = set()  # digests that some thread is placing

    def adopt(self, source: Path) -> Adopted:
        """Make the bytes of `source` durable under their digest; see `Store.adopt`."""
        (adopted,) = self.adopt_all((source,))
        return adopted

    def adopt_all(self, sources: Sequence[Path]) -> list[Adopted]:
        """Make the bytes of all `sources` durable; each directory of blobs is synced once, at the end."""
        directories: dict[Path, None] = {}
        together = len(sources) > SYNCERS
        if together:
            with ThreadPoolExecutor(SYNCERS, "sync") as pool:
                for _ in pool.map(_sync, sources):
                    pass
        adopted = [self._adopt(source, directories, synced=together) for source in sources]
        for directory in directories:
            fault("adopt:dirsync")
            fsync_directory(directory)
        return adopted

    def _adopt(self, source: Path, directories: dict[Path, None], *, synced: bool) -> Adopted:
        """All but the sync of the blob's directory, which is noted in `directories`."""
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise CommitFailed(f"{source} is not a regular file.")
            if not synced:
                _write_out(fd, source)
            digest = digest_of(fd)
            after = os.fstat(fd)
            if before.st_size != after.st_size:  # its times may change, nobody can write it
                raise CommitFailed(f"{source} changed while it was committed.")
            with self._turn(digest):
                linked = self._keep(fd, after, digest, directories)
            return Adopted(digest, after.st_size, linked, InodeKey(after.st_dev, after.st_ino))
        finally:
            os.close(fd)

    def adopt_copy(self, source: Path) -> Adopted:
        """As `adopt`, of bytes written anew: an earlier fsync of `source` failed, and no later one can be trusted."""
        half_made = self._layout.tmp / uuid4().hex
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            copy_file(fd, half_made)
            return replace(self.adopt(half_made), linked=False)
        except NotWritten as exc:
            raise NotWritten(source.name, exc.why) from exc
        finally:
            os.close(fd)
            half_made.unlink(missing_ok=True)

    def holds(self, digest: str, size: int) -> bool:
        """Whether the blob is there with that size (its bytes are not read)."""
        found = stat_or_none(self._layout.blob(digest))
        return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size

    def first_missing(self, sizes: Mapping[str, int]) -> str | None:
        """The first digest of `sizes` (digest → size) whose blob is not there."""
        return next((digest for digest, size in sizes.items() if not self.holds(digest, size)), None)

    def is_inode(self, digest: str, key: InodeKey) -> bool:
        """Whether the blob is that very inode."""
        found = stat_or_none(self._layout.blob(digest))
        return found is not None and (found.st_dev, found.st_ino) == (key.dev, key.ino)

    def recorded(self, digests: Iterable[str]) -> None:
        """The index names `digests` from now on."""
        for digest in digests:
            self._placed.pop(digest, None)

    @contextmanager
    def _turn(self, digest: str) -> Iterator[None]:
        """One thread at a time looks for the blob of a digest and places it."""
        with self._turns:
            self._turns.wait_for(lambda: digest not in self._busy)
            self._busy.add(digest)
        try:
            yield
        finally:
            with self._turns:
                self._busy.discard(digest)
                self._turns.notify_all()

    def _keep(self, fd: int, source: os.stat_result, digest: str, directories: dict[Path, None]) -> bool:
        """Have a blob of these bytes; return whether it is the source's own inode."""
        target = self._layout.blob(digest)
        existing = stat_or_none(target)
        if existing is not None and os.path.samestat(existing, source):
            self._make_fan_out(target.parent)
            directories[target.parent] = None
            return True
        if existing is not None and self._trusted(digest, existing) and _is_same(fd, source.st_size, target):
            if digest in self._placed:  # by a commit under way, which syncs its directory some time later
                directories[target.parent] = None
            return False
        self._make_fan_out(target.parent)
        fault("adopt:link")
        self._place(fd, target, free=existing is None)
        directories[target.parent] = None
        placed = os.stat(target)
        self._placed[digest] = placed.st_ino
        return os.path.samestat(placed, source)

    def _trusted(self, digest: str, existing: os.stat_result) -> bool:
        """A file that no record names and that was not placed here is a crash's left-over: it may be anything."""
        return self._placed.get(digest) == existing.st_ino or self._is_recorded(digest)

    def _place(self, fd: int, target: Path, *, free: bool) -> None:
        """Give `fd`'s inode, or a copy of it, the name `target`."""
        if free:
            with suppress(OSError):  # taken meanwhile, or not linkable: the way below finds out
                _link(fd, target)
                return
        half_made = self._layout.tmp / uuid4().hex
        try:
            _link_or_copy(fd, half_made)
            fault("adopt:replace")
            os.rename(half_made, target)
        except OSError:
            half_made.unlink(missing_ok=True)
            raise

    def _make_fan_out(self, directory: Path) -> None:
        if directory not in self._durable:
            make_directory(directory)
            self._durable.add(directory)


def _sync(source: Path) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _write_out(fd, source)
    finally:
        os.close(fd)


def _write_out(fd: int, source: Path) -> None:
    try:
        fault("adopt:fsync")
        os.fdatasync(fd)
    except OSError as exc:  # whatever its number: ENOSPC means too that pages were dropped
        raise NotWritten(source.name, exc.strerror or str(exc)) from exc


def digest_of(fd: int) -> str:
    """BLAKE3-256 of all of `fd`, in hex. By reading: a mapping of a file that shrinks kills the process (SIGBUS)."""
    hasher = blake3(max_threads=blake3.AUTO if os.fstat(fd).st_size > CHUNK and _HAS_CORES else 1)
    for chunk in chunks(fd):
        hasher.update(chunk)
    return hasher.hexdigest()


def _is_same(fd: int, size: int, target: Path) -> bool:
    """Whether the blob at `target` still has the bytes of `fd`, by comparing them.

    A name and a size are no proof: a bit that flipped on the disk would be handed on to every later save of the same
    bytes, and the good copy, which is here at this moment, would be let go. A blob that cannot be read is none.
    """
    try:
        existing = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(existing).st_size != size or not same_bytes(fd, existing):
            return False
        share_blocks(existing, fd, size)  # the working file stays training's own, but takes no room
        return True
    except OSError:
        return False
    finally:
        os.close(existing)


def _link_or_copy(fd: int, path: Path) -> None:
    try:
        _link(fd, path)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        copy_file(fd, path)


def _link(fd: int, path: Path) -> None:
    """Link the inode that `fd` has open, whatever its name stands for by now."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Python follows the magic link (AT_SYMLINK_FOLLOW) only when it is given a directory descriptor.
        os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


def stat_or_none(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
