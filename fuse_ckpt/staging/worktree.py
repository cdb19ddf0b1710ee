"""Reading the working tree: which files are a unit's members now, and whether they can be sealed.

Everything is opened relative to the root's descriptor and never through a symlink, so that a tree that changes
meanwhile can give a wrong answer (which its caller checks again) but never a file from outside.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.model import InodeKey, Kind, Shape, Unit
from fuse_ckpt.staging.copying import copy_bytes
from fuse_ckpt.staging.units import (
    SIBLING,
    UnitRules,
    is_companion,
    is_log,
    is_set,
    is_step_like,
    is_temporary,
    mark_of,
)

PATH_MAX = 4096  # bytes, the last of them zero (limits.h)
LARGEST_POINTER = 4096  # bytes
LARGEST_COMPANION = 1 << 20  # bytes; a pointer or a helper script, never weights


class Found(Struct, frozen=True):
    """One member of a unit as it lies in the working tree. `path` is relative to the output directory's root."""

    path: str
    kind: Kind
    mode: int
    size: int
    mtime_ns: int
    key: InodeKey
    links: int
    target: str = ""


class Scan(Struct, frozen=True):
    """A unit as the working tree shows it: its members, its companions, and the temporary names that lie in it."""

    members: tuple[Found, ...]
    companions: tuple[Found, ...]
    temporary: tuple[str, ...]

    @property
    def files(self) -> list[Found]:
        return [found for found in self.members if found.kind is Kind.FILE]


def may_be_written(fd: int) -> bool:
    """Whether a writable descriptor or shared mapping of the file behind the read-only `fd` exists anywhere.

    Asked of the kernel by a read lease (fcntl(2), F_SETLEASE). Where leases do not exist, or the file is not ours to
    ask about, the open handles that the mount itself knows are the only answer, and this one says False.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as exc:
        return exc.errno == errno.EAGAIN
    return False


class WorkTree:
    """The working tree of one job, seen from the disk. `root_fd` stays the caller's."""

    def __init__(self, root_fd: int, rules: UnitRules) -> None:
        self.root_fd = root_fd
        self._rules = rules

    def scan(self, unit: Unit, skip: frozenset[InodeKey] = frozenset()) -> Scan:
        """Look a unit up; an empty one where nothing of it is left. `skip`: inodes of logs that are being written."""
        walked = (path for path, _ in self._walk(unit.name))
        paths = walked if unit.shape is Shape.DIRECTORY else self._flat_paths(unit)
        members: list[Found] = []
        temporary: list[str] = []
        for path in paths:
            if is_temporary(path.rpartition("/")[2]):
                temporary.append(path)
                continue
            if len(os.fsencode(path)) >= PATH_MAX:  # it can be made, name by name; a checkpoint cannot hold it
                temporary.append(f"{path[:80]}… (its path is longer than {PATH_MAX - 1} bytes)")
                continue
            found = self.look(path)
            if found is not None and not (found.key in skip and is_log(path)):
                members.append(found)
        return Scan(tuple(sorted(members, key=lambda f: f.path)), tuple(self._companions(unit)), tuple(temporary))

    def look(self, path: str) -> Found | None:
        """What lies at `path`; None if nothing does, or nothing that a checkpoint can hold (a socket, a device)."""
        try:
            status = os.stat(path, dir_fd=self.root_fd, follow_symlinks=False)
            target = os.readlink(path, dir_fd=self.root_fd) if stat.S_ISLNK(status.st_mode) else ""
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ENAMETOOLONG):
                return None
            raise
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            return None
        key = InodeKey(status.st_dev, status.st_ino)
        size = status.st_size if kind is Kind.FILE else 0
        return Found(path, kind, stat.S_IMODE(status.st_mode), size, status.st_mtime_ns, key, status.st_nlink, target)

    def has_files(self, unit: Unit) -> bool:
        """Whether a file of the unit is left. Looks no further than the first, for each removal of many asks."""
        if unit.shape is not Shape.DIRECTORY:
            return bool(self.scan(unit).files)
        return any(is_file and not is_temporary(path.rpartition("/")[2]) for path, is_file in self._walk(unit.name))

    def mark(self, unit: Unit) -> str | None:
        """The mark beside the unit that says that it is not finished, if there is one."""
        path = mark_of(unit)
        return path if self.look(path) is not None else None

    def copy(self, found: Found, where: Path) -> None:
        """Copy a file that somebody may write again; ESTALE where that happened meanwhile."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        source = os.open(found.path, flags, dir_fd=self.root_fd)
        try:
            target = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copy_bytes(source, target, found.size)
            finally:
                os.close(target)
            status = os.fstat(source)
        finally:
            os.close(source)
        after = InodeKey(status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns
        if after != (found.key, found.size, found.mtime_ns):
            raise changed(found.path)

    def pointer(self, path: str) -> str:
        """What a small text file says, as a `latest` file names a directory; "" for any other."""
        found = self.look(path)
        if found is None or found.kind is not Kind.FILE or found.size > LARGEST_POINTER:
            return ""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.root_fd)
        with open(fd, "rb") as file:
            return os.fsdecode(file.read(LARGEST_POINTER))

    def units(self) -> Iterator[Unit]:
        """Every unit that the tree holds now, each once."""
        seen: set[Unit] = set()
        for path in self._files_below("."):
            unit = self._rules.unit_of(path)
            if unit is not None and unit not in seen:
                seen.add(unit)
                yield unit

    def units_below(self, directory: str) -> Iterator[Unit]:
        """Every unit that has a file below `directory`, each once."""
        seen = {self._rules.unit_of(path) for path in self._files_below(directory)}
        yield from (unit for unit in seen if unit is not None)

    def linked_inodes(self) -> set[InodeKey]:
        """The inodes of all files with more than one link, whatever their names: every blob is among them."""
        found = (self.look(path) for path in self._files_below("."))
        keys = ((one.key, one.links) for one in found if one is not None and one.kind is Kind.FILE)
        return {key for key, links in keys if links > 1}

    def is_written(self, found: Found) -> bool:
        """Whether any process may still write the file; see `may_be_written`."""
        fd = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.root_fd)
        try:
            return may_be_written(fd)
        finally:
            os.close(fd)

    def _flat_paths(self, unit: Unit) -> list[str]:
        if unit.shape is Shape.FLAT and not is_set(unit):
            return [unit.name]
        head = f"{unit.prefix}/" if unit.prefix else ""
        names = [name for name, _ in self._names(unit.prefix)]
        if unit.shape is Shape.ROOT:
            found = [self.look(name) for name in names if self._rules.member_of(name) == unit]
            return [f.path for f in found if f is not None and f.kind is not Kind.DIRECTORY]
        return [head + name for name in self._rules.flat_members(unit, names)]

    def _companions(self, unit: Unit) -> Iterator[Found]:
        beside = unit.name.rpartition("/")[0]
        head = f"{beside}/" if beside else ""
        names = sorted(name for name, symlink in self._names(beside) if is_companion(name, symlink))
        found = (self.look(head + name) for name in names if head + name != unit.name)
        for one in found:
            if one is not None and one.kind is not Kind.DIRECTORY and one.size <= LARGEST_COMPANION:
                yield one
        if is_step_like(unit.name.rpartition("/")[2]):
            siblings = (self.look(path) for path, is_file in self._walk(head + SIBLING) if is_file)
            yield from (one for one in siblings if one is not None and not is_temporary(one.path))

    def _names(self, directory: str) -> list[tuple[str, bool]]:
        """The names in a directory, and whether each is a symlink's."""
        try:
            fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.root_fd)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            with os.scandir(fd) as entries:
                return [(entry.name, entry.is_symlink()) for entry in entries]
        finally:
            os.close(fd)

    def _files_below(self, directory: str) -> Iterator[str]:
        return (path for path, is_file in self._walk(directory) if is_file)

    def _walk(self, top: str) -> Iterator[tuple[str, bool]]:
        """Everything below `top` by its path, and whether it is no directory. What vanishes meanwhile is left out."""
        waiting = [top]
        while waiting:
            where = waiting.pop()
            head = "" if where == "." else f"{where}/"
            for name, is_directory in self._entries(where):
                if is_directory and len(os.fsencode(head + name)) < PATH_MAX:
                    waiting.append(head + name)
                yield head + name, not is_directory

    def _entries(self, directory: str) -> Iterator[tuple[str, bool]]:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.root_fd)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return
            raise
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name, entry.is_dir(follow_symlinks=False)
        finally:
            os.close(fd)


_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFLNK: Kind.SYMLINK, stat.S_IFDIR: Kind.DIRECTORY}


def changed(path: str) -> OSError:
    """What is raised where a file is not any more what it was when it was looked at."""
    return OSError(errno.ESTALE, "changed while it was sealed", path)
