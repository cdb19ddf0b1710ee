"""Random programs on the mount's filesystem and on a plain directory beside it: what they see must be the same."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fuse_ckpt.store import Store
from fuse_ckpt.vfs import Changes
from tests.vfs.kernel import CALLER, Mounted, run

DIRECTORIES = [b"", b"d", b"checkpoint-1", b"checkpoint-1/d"]
NAMES = [b"a", b"b.dat", b"caf\xe9"]  # few, so that programs meet the same files again and again
PATHS = sorted({*DIRECTORIES[1:], *(d + b"/" + n if d else n for d in DIRECTORIES for n in NAMES)})
TARGET = b"nowhere/at/all"
RENAME_EXCHANGE = 2
WRITING = [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC]

paths = st.sampled_from(PATHS)
sizes = st.integers(0, 12)
contents = st.binary(min_size=1, max_size=6)


@dataclass
class File:
    """An open file, in both places. `frozen`: it was replaced while it was open, and keeps the bytes of then."""

    fh: int
    fd: int
    writable: bool
    frozen: bytes | None = None


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


class Programs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="fuse-ckpt-machine-"))
        self.plain = os.fsencode(self.directory / "plain")
        os.mkdir(self.plain)
        self.store = Store.open(self.directory / "store")
        self.mount = Mounted(self.store)
        self.files: list[File] = []
        self.digests: dict[str, dict[str, str]] = {}
        for path in DIRECTORIES[1:]:
            self.mkdir(path)
        for path in (b"a", b"d/a", b"checkpoint-1/a"):
            self.save(path, path)

    def teardown(self) -> None:
        try:
            self.commit()
            self.close_all()
            self.commit()
            assert self.store.verify() == self.store.problems == []
            descriptors = len(os.listdir("/proc/self/fd"))
            self.kernel.evict()
            assert (self.mount.filesystem.known_inodes, self.mount.filesystem.open_files) == (1, 0)
            assert len(os.listdir("/proc/self/fd")) <= descriptors
        finally:
            for file in self.files:
                os.close(file.fd)
            self.mount.close()
            self.store.close()
            shutil.rmtree(self.directory)

    @property
    def kernel(self) -> Any:
        return self.mount.kernel

    def at(self, path: bytes) -> bytes:
        return self.plain + b"/" + path

    def both(self, mine: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[Any, Any]:
        """Do it in both places; where it replaced a sealed file, those who hold that keep its bytes."""
        self.kernel.stale.clear()
        here = outcome(mine)
        for file in self.files:
            if self.kernel.handles[file.fh] in self.kernel.stale:
                file.frozen = os.pread(file.fd, 1000, 0)
        there = outcome(theirs)
        assert (here if isinstance(here, str) else None) == (there if isinstance(there, str) else None)
        return here, there

    # -- programs -----------------------------------------------------------------------------------------------------

    @rule(path=paths, data=contents)
    def create(self, path: bytes, data: bytes) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        fh, fd = self.both(lambda: self.kernel.create(path), lambda: os.open(self.at(path), flags, 0o644))
        if not isinstance(fh, str):
            self.files.append(File(fh, fd, True))
            self.write(len(self.files) - 1, 0, data)

    @rule(path=paths, data=contents)
    def save(self, path: bytes, data: bytes) -> None:
        """A file that is created and closed, as most are."""
        self.create(path, data)
        if self.files and self.files[-1].writable:
            self.close(len(self.files) - 1)

    @rule(path=paths, flags=st.sampled_from([os.O_RDONLY, *WRITING]))
    def open(self, path: bytes, flags: int) -> None:
        fh, fd = self.both(
            lambda: self.kernel.open(path, flags),
            lambda: os.open(self.at(path), flags | os.O_NOFOLLOW if flags else self._no_directory(path)),
        )
        if not isinstance(fh, str):
            self.files.append(File(fh, fd, flags != os.O_RDONLY))

    def _no_directory(self, path: bytes) -> int:
        if os.path.isdir(self.at(path)):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        return os.O_RDONLY | os.O_NOFOLLOW

    @rule(which=st.integers(0), flags=st.sampled_from(WRITING), data=contents, hold=st.booleans(), sealed=st.booleans())
    def edit(self, which: int, flags: int, data: bytes, hold: bool, sealed: bool) -> None:
        """A file that is there is written again: after a commit, or while somebody reads it, or both."""
        found = self._regular()
        if not found:
            return
        path = found[which % len(found)]
        if sealed:
            self.commit()
        if hold:
            self.open(path, os.O_RDONLY)
        before = len(self.files)
        self.open(path, flags)
        if len(self.files) > before:
            self.write(before, 1, data)
            self.close(before)

    def _regular(self) -> list[bytes]:
        return [path for path in PATHS if os.path.isfile(self.at(path)) and not os.path.islink(self.at(path))]

    @rule(which=st.integers(0), path=paths, sealed=st.booleans())
    def alias(self, which: int, path: bytes, sealed: bool) -> None:
        """A file that is there gets another name."""
        found = self._regular()
        if sealed:
            self.commit()
        if found:
            self.link(found[which % len(found)], path)

    @rule(which=st.integers(0), path=paths)
    def move(self, which: int, path: bytes) -> None:
        found = [*self._regular(), *(p for p in DIRECTORIES[1:] if os.path.isdir(self.at(p)))]
        if found:
            self.rename(found[which % len(found)], path)

    @rule(which=st.integers(0), size=sizes, sealed=st.booleans())
    def cut(self, which: int, size: int, sealed: bool) -> None:
        found = self._regular()
        if sealed:
            self.commit()
        if found:
            self.truncate(found[which % len(found)], size)

    @rule(which=st.integers(0), offset=sizes, data=contents)
    def write(self, which: int, offset: int, data: bytes) -> None:
        file = self.files[which % len(self.files)] if self.files else None
        if file is not None and file.writable:
            self.kernel.filesystem.write(file.fh, offset, data)
            os.pwrite(file.fd, data, offset)

    @rule(which=st.integers(0), size=sizes)
    def truncate_open(self, which: int, size: int) -> None:
        file = self.files[which % len(self.files)] if self.files else None
        if file is not None and file.writable:
            run(self.kernel.filesystem.setattr, self.kernel.handles[file.fh], Changes(size=size), file.fh, CALLER)
            os.ftruncate(file.fd, size)

    @rule(which=st.integers(0))
    def close(self, which: int) -> None:
        if self.files:
            file = self.files.pop(which % len(self.files))
            self.kernel.release(file.fh)
            os.close(file.fd)

    @rule(path=paths, size=sizes)
    def truncate(self, path: bytes, size: int) -> None:
        self.both(lambda: self.kernel.truncate(path, size), lambda: os.truncate(self.at(path), size))

    @rule(path=paths)
    def mkdir(self, path: bytes) -> None:
        self.both(lambda: self.kernel.mkdir(path), lambda: os.mkdir(self.at(path), 0o755))

    @rule(path=paths)
    def symlink(self, path: bytes) -> None:
        self.both(lambda: self.kernel.symlink(TARGET, path), lambda: os.symlink(TARGET, self.at(path)))

    @rule(old=paths, new=paths)
    def link(self, old: bytes, new: bytes) -> None:
        self.both(
            lambda: self.kernel.link(old, new), lambda: os.link(self.at(old), self.at(new), follow_symlinks=False)
        )

    @rule(path=paths)
    def unlink(self, path: bytes) -> None:
        self.both(lambda: self.kernel.unlink(path), lambda: os.unlink(self.at(path)))

    @rule(path=paths)
    def rmdir(self, path: bytes) -> None:
        self.both(lambda: self.kernel.rmdir(path), lambda: os.rmdir(self.at(path)))

    @rule(old=paths, new=paths)
    def rename(self, old: bytes, new: bytes) -> None:
        self.both(lambda: self.kernel.rename(old, new), lambda: os.rename(self.at(old), self.at(new)))

    @rule(one=paths, other=paths)
    def exchange(self, one: bytes, other: bytes) -> None:
        """The plain directory has no such call in Python: by way of a third name."""
        if one == other or not (os.path.lexists(self.at(one)) and os.path.lexists(self.at(other))):
            return
        if os.path.samestat(os.lstat(self.at(one)), os.lstat(self.at(other))):
            return
        if one.startswith(other + b"/") or other.startswith(one + b"/"):
            return
        self.kernel.rename(one, other, RENAME_EXCHANGE)
        os.rename(self.at(one), self.plain + b".third")
        os.rename(self.at(other), self.at(one))
        os.rename(self.plain + b".third", self.at(other))

    @rule(path=paths, mode=st.sampled_from([0o600, 0o644, 0o444]))
    def chmod(self, path: bytes, mode: int) -> None:
        if not os.path.islink(self.at(path)):
            self.both(lambda: self.kernel.change(path, Changes(mode=mode)), lambda: os.chmod(self.at(path), mode))

    # -- the mount ----------------------------------------------------------------------------------------------------

    @rule()
    def evict(self) -> None:
        self.kernel.evict()

    @rule()
    def commit(self) -> None:
        before = self._times()
        self.mount.commit()
        assert self._times() == before
        for one in self.store.checkpoints():
            entries = {e.path: e.digest for e in self.store.manifest(one.id).entries}
            assert self.digests.get(one.id, {}).items() <= entries.items()  # a late file may be added
            self.digests[one.id] = entries

    @rule()
    def remount(self) -> None:
        self.close_all()
        self.mount.filesystem.release_all()
        self.mount.close()
        self.mount = Mounted(self.store)

    def close_all(self) -> None:
        while self.files:
            self.close(0)

    def _times(self) -> list[tuple[bytes, int]]:
        found = []
        for where, _, names in os.walk(os.fsencode(self.mount.work)):
            for name in (b".", *names):
                path = os.path.join(where, name)
                found.append((path, os.lstat(path).st_mtime_ns))
        return sorted(found)

    # -- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def both_trees_are_the_same(self) -> None:
        nodes: dict[int, int] = {}
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            names = sorted(os.listdir(self.at(path)))
            assert self.kernel.listdir(path) == names
            for name in names:
                below = path + b"/" + name if path else name
                self._is_the_same(below, nodes)
                if os.path.isdir(self.at(below)):
                    waiting.append(below)
        assert len(set(nodes.values())) == len(nodes)

    def _is_the_same(self, path: bytes, nodes: dict[int, int]) -> None:
        here, there = self.kernel.stat(path), os.lstat(self.at(path))
        assert nodes.setdefault(there.st_ino, here.nid) == here.nid
        assert here.mode == there.st_mode
        if os.path.islink(self.at(path)):
            assert self.kernel.readlink(path) == TARGET
        elif os.path.isfile(self.at(path)):
            assert (path, here.nlink, here.size) == (path, there.st_nlink, there.st_size)
            with open(self.at(path), "rb") as file:
                assert (path, self.kernel.get(path)) == (path, file.read())

    @invariant()
    def open_files_read_what_they_held(self) -> None:
        for file in self.files:
            if file.frozen is not None:
                assert self.kernel.filesystem.read(file.fh, 0, 1000) == file.frozen
            elif not file.writable or os.get_blocking(file.fd):
                assert self.kernel.filesystem.read(file.fh, 0, 1000) == self._held(file)

    def _held(self, file: File) -> bytes:
        with open(f"/proc/self/fd/{file.fd}", "rb") as again:
            return again.read()

    @invariant()
    def no_committed_byte_ever_changes(self) -> None:
        for path in self.store.layout.blobs.glob("*/*"):
            data = path.read_bytes()
            assert self.digests.setdefault(path.name, {"": hashlib.sha256(data).hexdigest()}) == {
                "": hashlib.sha256(data).hexdigest()
            }


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=list(HealthCheck),
)
