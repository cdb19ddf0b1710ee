"""Blobs: immutable files named by the BLAKE3 digest of their bytes, made by linking, not by copying."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import CommitFailed
from fuse_ckpt.faults import fault
from fuse_ckpt.model import InodeKey

from .durable import chunks, copy_file, fsync_directory, make_directory, same_bytes
from .layout import Layout

# Where an inode cannot take another name: too many links, another filesystem, not ours to link, unlinked (or no /proc).
NO_LINK = frozenset({errno.EMLINK, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT})


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

    def adopt(self, source: Path) -> Adopted:
        """Make the bytes of `source` durable under their digest; see `Store.adopt`."""
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise CommitFailed(f"{source} is not a regular file.")
            fault("adopt:fsync")
            os.fdatasync(fd)
            digest = digest_of(fd)
            after = os.fstat(fd)
            if before.st_size != after.st_size:  # its times may change, nobody can write it
                raise CommitFailed(f"{source} changed while it was committed.")
            linked = self._keep(fd, after, digest)
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
        finally:
            os.close(fd)
            half_made.unlink(missing_ok=True)

    def holds(self, digest: str, size: int) -> bool:
        """Whether the blob is there with that size (its bytes are not read)."""
        found = stat_or_none(self._layout.blob(digest))
        return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size

    def is_inode(self, digest: str, key: InodeKey) -> bool:
        """Whether the blob is that very inode."""
        found = stat_or_none(self._layout.blob(digest))
        return found is not None and (found.st_dev, found.st_ino) == (key.dev, key.ino)

    def recorded(self, digests: Iterable[str]) -> None:
        """The index names `digests` from now on."""
        for digest in digests:
            self._placed.pop(digest, None)

    def _keep(self, fd: int, source: os.stat_result, digest: str) -> bool:
        """Have a blob of these bytes; return whether it is the source's own inode."""
        target = self._layout.blob(digest)
        existing = stat_or_none(target)
        if existing is not None and os.path.samestat(existing, source):
            self._sync(target)
            return True
        if existing is not None and self._trusted(digest, existing) and _is_same(fd, source.st_size, target):
            return False
        self._make_fan_out(target.parent)
        fault("adopt:link")
        linked = self._place(fd, target, free=existing is None)
        self._sync(target)
        self._placed[digest] = os.stat(target).st_ino
        return linked

    def _trusted(self, digest: str, existing: os.stat_result) -> bool:
        """A file that no record names and that was not placed here is a crash's left-over: it may be anything."""
        return self._placed.get(digest) == existing.st_ino or self._is_recorded(digest)

    def _place(self, fd: int, target: Path, *, free: bool) -> bool:
        """Give `fd`'s inode, or a copy of it, the name `target`; return whether it is the inode itself."""
        if free:
            with suppress(OSError):  # taken meanwhile, or not linkable: the way below finds out
                _link(fd, target)
                return True
        half_made = self._layout.tmp / uuid4().hex
        try:
            linked = _link_or_copy(fd, half_made)
            fault("adopt:replace")
            os.rename(half_made, target)
        except OSError:
            half_made.unlink(missing_ok=True)
            raise
        return linked

    def _make_fan_out(self, directory: Path) -> None:
        if directory not in self._durable:
            make_directory(directory)
            self._durable.add(directory)

    def _sync(self, target: Path) -> None:
        self._make_fan_out(target.parent)
        fault("adopt:dirsync")
        fsync_directory(target.parent)


def digest_of(fd: int) -> str:
    """BLAKE3-256 of all of `fd`, in hex. By reading: a mapping of a file that shrinks kills the process (SIGBUS)."""
    hasher = blake3()
    for chunk in chunks(fd):
        hasher.update(chunk)
    return hasher.hexdigest()


def _is_same(fd: int, size: int, target: Path) -> bool:
    """Whether the blob at `target` still has the bytes of `fd`, by comparing them.

    A name and a size are no proof: a bit that flipped on the disk would be handed on to every later save of the same
    bytes, and the good copy, which is here at this moment, would be let go. A blob that cannot be read is none.
    """
    fault("adopt:compare")
    try:
        existing = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.fstat(existing).st_size == size and same_bytes(fd, existing)
    except OSError:
        return False
    finally:
        os.close(existing)


def _link_or_copy(fd: int, path: Path) -> bool:
    try:
        _link(fd, path)
        return True
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
    copy_file(fd, path)
    return False


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
