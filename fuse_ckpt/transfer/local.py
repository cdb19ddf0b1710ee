"""A file or directory of this machine, as something that can be pushed. Read only; it stays its owner's."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError, NotFound, UsageError
from fuse_ckpt.model import Entry, Kind, Origin, Shape
from fuse_ckpt.transfer import copying, places, tree


class LocalSource:
    """The file or directory `path`. With `follow` a symlink that leads out of it stands for the file that it leads to.

    Errors: NotFound, UsageError (holds a device, a socket, a symlink that leads out; or the store).
    """

    def __init__(self, path: Path, store: Path, *, follow: bool = False) -> None:
        self.path = path
        self._followed: set[str] = set()
        try:
            real = path.resolve(strict=True)
        except OSError as error:
            raise NotFound(f"{path} cannot be pushed: {error.strerror}.") from None
        is_file = real.is_file()
        self._top = real.parent if is_file else real
        self.shape = Shape.FLAT if is_file else Shape.DIRECTORY
        self.origin = Origin(local=(str(path),))
        self.label = real.stem if is_file else real.name
        if not is_file:
            _refuse_holding(real, store)
        self.entries = [self._file(real.name, real.stat())] if is_file else list(self._walk(follow))
        if not any(entry.kind is Kind.FILE for entry in self.entries):
            raise UsageError(f"{path} holds no file: there is nothing to push.")

    @property
    def identity(self) -> str:
        """What a push that was interrupted is known by."""
        return f"file {self._top}"

    @property
    def created_ns(self) -> int:
        """When the newest file was written, nanoseconds since the epoch."""
        return max(entry.mtime_ns for entry in self.entries if entry.kind is Kind.FILE)

    @property
    def said(self) -> None:
        """Nobody has said anything of it."""

    @property
    def failure(self) -> None:
        """Nobody has said that it has failed."""

    def shares(self, entry: Entry, target: int) -> bool:
        """Whether the disk lets the empty file `target` share this file's bytes."""
        with self._open(entry.path) as fd:
            return copying.clone(fd, target)

    def read_into(self, entry: Entry, target: int, advance: copying.Advance) -> str:
        """Copy the file into the empty file `target`; its BLAKE3-256. Errors: FuseCkptError (it changed), OSError."""
        with self._open(entry.path) as fd:
            digest = copying.copy(fd, target, entry.size, advance)
            now = os.fstat(fd)
        if (now.st_size, now.st_mtime_ns) != (entry.size, entry.mtime_ns):
            raise FuseCkptError(f"{self._top / entry.path} changed while it was pushed: push it when it is finished.")
        return digest

    @contextlib.contextmanager
    def _open(self, path: str) -> Iterator[int]:
        top = os.open(self._top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with tree.parent(top, path) as (above, name):
                follows = path in self._followed
                fd = os.open(name, tree.READ & ~os.O_NOFOLLOW if follows else tree.READ, dir_fd=above)
        finally:
            os.close(top)
        try:
            yield fd
        finally:
            os.close(fd)

    def _walk(self, follow: bool) -> Iterator[Entry]:
        for top, inner, names, fd in os.fwalk(self._top, onerror=_raise):
            above = os.path.relpath(top, self._top)
            for name in sorted((*names, *inner)):
                path = name if above == "." else f"{above}/{name}"
                entry = self._entry(path, name, fd, follow)
                if entry is not None:
                    yield entry

    def _entry(self, path: str, name: str, fd: int, follow: bool) -> Entry | None:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            return self._file(path, status)
        if stat.S_ISDIR(status.st_mode):
            return _empty_directory(path, name, fd, status)
        if stat.S_ISLNK(status.st_mode):
            return self._link(path, name, fd, status, follow)
        raise UsageError(f"{self.path / path} is neither file, directory nor symlink: move it away, then push again.")

    def _link(self, path: str, name: str, fd: int, status: os.stat_result, follow: bool) -> Entry:
        target = os.readlink(name, dir_fd=fd)
        if not leads_out(path, target):
            return Entry(path, Kind.SYMLINK, 0o777, status.st_mtime_ns, target=target)
        if not follow:
            raise UsageError(
                f"{self.path / path} is a symlink that leads out of it, to {target}: --follow-symlinks pushes the file "
                "that it leads to."
            )
        try:
            meant = os.stat(name, dir_fd=fd)
        except OSError as error:
            raise UsageError(f"{self.path / path} is a symlink that leads nowhere: {error.strerror}.") from None
        if not stat.S_ISREG(meant.st_mode):
            raise UsageError(f"{self.path / path} leads to {target}, which is no file: only files are followed.")
        self._followed.add(path)
        return self._file(path, meant)

    def _file(self, path: str, status: os.stat_result) -> Entry:
        return Entry(path, Kind.FILE, status.st_mode & 0o777, status.st_mtime_ns, size=status.st_size)


def leads_out(path: str, target: str) -> bool:
    """Whether a symlink at `path`, relative to a directory, names something outside of that directory."""
    if target.startswith("/"):
        return True
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target)).split("/")[0] == ".."


def _empty_directory(path: str, name: str, fd: int, status: os.stat_result) -> Entry | None:
    inner = os.open(name, tree.DIRECTORY, dir_fd=fd)
    try:
        empty = not os.listdir(inner)
    finally:
        os.close(inner)
    return Entry(path, Kind.DIRECTORY, status.st_mode & 0o777, status.st_mtime_ns) if empty else None


def _refuse_holding(real: Path, store: Path) -> None:
    root = places.existing(store).resolve()
    if root == real or real in root.parents:
        raise UsageError(f"{real} holds the store {store} itself: push a directory below it.")


def _raise(error: OSError) -> None:
    raise error
