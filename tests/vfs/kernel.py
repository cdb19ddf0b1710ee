"""What the kernel does above a filesystem: walks paths, remembers names, counts lookups, retries once on ESTALE."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

from fuse_ckpt.staging import Area, Committer, Settings, recover
from fuse_ckpt.store import Store
from fuse_ckpt.vfs import Attributes, Caller, Changes, Filesystem, job_filesystem

T = TypeVar("T")
ROOT = 1
JOB = "job"
CALLER = Caller(os.getuid(), os.getgid(), 0)


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def run(function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    return trio.run(function, *arguments)


def give_back(filesystem: Filesystem) -> None:
    """Close the descriptors that it holds, as the end of its process does: a run of all tests is one process."""
    filesystem.release_all()
    for inode in [*filesystem._table._by_nid.values()]:
        inode.drop()


class Kernel:
    """Calls by path, answered by `filesystem`. Names are trusted until `forget_name`, as their timeout allows."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.stale: list[int] = []  # node ids whose opening was answered ESTALE
        self.handles: dict[int, int] = {}  # fh → node id
        self._names: dict[tuple[int, bytes], int] = {}
        self._seen: set[int] = {ROOT}
        self._modes: dict[int, int] = {ROOT: stat.S_IFDIR | 0o755}
        self._fleeting: set[int] = set()  # node ids whose names are not to be trusted
        self.filesystem: Filesystem

    def forget_name(self, parent: int, name: bytes) -> None:
        self._names.pop((parent, name), None)

    # -- names --------------------------------------------------------------------------------------------------------

    def walk(self, path: bytes, *, ask_again: bool = False) -> int:
        """The node id at `path`; every name is looked up again where `ask_again` (LOOKUP_REVAL)."""
        nid = ROOT
        for name in path.split(b"/") if path else ():
            self._only_directory(nid)
            nid = self._lookup(nid, name, ask_again=ask_again)
        return nid

    def parent(self, path: bytes, *, ask_again: bool = False) -> tuple[int, bytes]:
        above, _, name = path.rpartition(b"/")
        nid = self.walk(above, ask_again=ask_again)
        self._only_directory(nid)
        return nid, name

    def _only_directory(self, nid: int) -> None:
        if stat.S_ISLNK(self._modes[nid]):
            raise error(errno.ENOENT)  # every symlink of these tests dangles
        if not stat.S_ISDIR(self._modes[nid]):
            raise error(errno.ENOTDIR)

    def _lookup(self, parent: int, name: bytes, *, ask_again: bool = False) -> int:
        known = self._names.get((parent, name))
        if known is not None and not ask_again and known not in self._fleeting:
            return known
        try:
            return self._entry(parent, name, self.filesystem.lookup(parent, name))
        except FileNotFoundError:
            self._names.pop((parent, name), None)
            raise

    def _entry(self, parent: int, name: bytes, attributes: Attributes, *, new: bool = False) -> int:
        nid = attributes.nid
        if new:
            assert nid not in self._seen, "a node id was used again"
        self._seen.add(nid)
        self.counts[nid] = self.counts.get(nid, 0) + 1
        self._names[parent, name] = nid
        self._modes[nid] = attributes.mode
        (self._fleeting.discard if attributes.entry_timeout else self._fleeting.add)(nid)
        return nid

    def _again(self, path: bytes, call: Callable[[int], Awaitable[T]]) -> T:
        """`call` the node at `path`; after ESTALE once more, with every name looked up again."""
        nid = self.walk(path)
        try:
            return run(call, nid)
        except OSError as exc:
            if exc.errno != errno.ESTALE:
                raise
        self.stale.append(nid)
        return run(call, self.walk(path, ask_again=True))

    # -- system calls -------------------------------------------------------------------------------------------------

    def create(self, path: bytes, mode: int = 0o644) -> int:
        """open(O_CREAT | O_EXCL)"""
        parent, name = self.parent(path)
        self._absent(parent, name)
        fh, attributes = self.filesystem.create(parent, name, mode, CALLER)
        self.handles[fh] = self._entry(parent, name, attributes, new=True)
        return fh

    def open(self, path: bytes, flags: int) -> int:
        """open(2) without O_CREAT, with O_NOFOLLOW; its handle."""
        mode = self._modes[self.walk(path)]
        if stat.S_ISLNK(mode):
            raise error(errno.ELOOP)
        if stat.S_ISDIR(mode):
            raise error(errno.EISDIR)
        fh = self._again(path, lambda nid: self.filesystem.open(nid, flags, CALLER))
        self.handles[fh] = self.walk(path)
        return fh

    def release(self, fh: int) -> None:
        del self.handles[fh]
        self.filesystem.flush(fh)
        self.filesystem.release(fh)

    def put(self, path: bytes, data: bytes) -> None:
        """Write a whole file: open(path, "wb")."""
        try:
            fh = self.open(path, os.O_WRONLY | os.O_TRUNC)
        except FileNotFoundError:
            fh = self.create(path)
        self.filesystem.write(fh, 0, data)
        self.release(fh)

    def get(self, path: bytes) -> bytes:
        fh = self.open(path, os.O_RDONLY)
        try:
            return self.filesystem.read(fh, 0, 1 << 20)
        finally:
            self.release(fh)

    def truncate(self, path: bytes, size: int) -> None:
        mode = self._modes[self.walk(path)]
        if not stat.S_ISREG(mode):
            raise error(errno.EISDIR if stat.S_ISDIR(mode) else errno.ENOENT)
        self._again(path, lambda nid: self.filesystem.setattr(nid, Changes(size=size), None, CALLER))

    def change(self, path: bytes, changes: Changes) -> Attributes:
        return run(self.filesystem.setattr, self.walk(path), changes, None, CALLER)

    def stat(self, path: bytes) -> Attributes:
        return self.filesystem.getattr(self.walk(path))

    def mkdir(self, path: bytes) -> None:
        parent, name = self.parent(path)
        self._absent(parent, name)
        self._entry(parent, name, self.filesystem.mkdir(parent, name, 0o755, CALLER), new=True)

    def symlink(self, target: bytes, path: bytes) -> None:
        parent, name = self.parent(path)
        self._absent(parent, name)
        self._entry(parent, name, self.filesystem.symlink(parent, name, target, CALLER), new=True)

    def readlink(self, path: bytes) -> bytes:
        return self.filesystem.readlink(self.walk(path))

    def link(self, old: bytes, new: bytes) -> None:
        nid = self.walk(old)
        parent, name = self.parent(new)
        self._absent(parent, name)
        if stat.S_ISDIR(self._modes[nid]):
            raise error(errno.EPERM)
        assert self._entry(parent, name, self.filesystem.link(nid, parent, name, CALLER)) == nid

    def unlink(self, path: bytes) -> None:
        self._remove(path, self.filesystem.unlink)

    def rmdir(self, path: bytes) -> None:
        self._remove(path, self.filesystem.rmdir)

    def _remove(self, path: bytes, call: Callable[[int, bytes, Caller], None]) -> None:
        parent, name = self.parent(path)
        self._lookup(parent, name)
        call(parent, name, CALLER)
        del self._names[parent, name]

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        parent, name = self.parent(old)
        new_parent, new_name = self.parent(new)
        nid = self._lookup(parent, name)
        target = self._known(new_parent, new_name)
        if target == nid:
            return
        self.filesystem.rename(parent, name, new_parent, new_name, flags, CALLER)
        self._names[new_parent, new_name] = self._names.pop((parent, name))
        if flags and target is not None:
            self._names[parent, name] = target

    def listdir(self, path: bytes) -> list[bytes]:
        fh = self.filesystem.opendir(self.walk(path))
        try:
            return sorted(self.filesystem.listing(fh, rewound=True)[1])
        finally:
            self.filesystem.releasedir(fh)

    def _known(self, parent: int, name: bytes) -> int | None:
        try:
            return self._lookup(parent, name)
        except FileNotFoundError:
            return None

    def _absent(self, parent: int, name: bytes) -> None:
        if self._known(parent, name) is not None:
            raise error(errno.EEXIST)

    # -- memory -------------------------------------------------------------------------------------------------------

    def evict(self) -> None:
        """Forget all that no open file keeps: its inode, and the names on the way to it."""
        kept = set(self.handles.values())
        while above := {parent for (parent, _), nid in self._names.items() if nid in kept} - kept:
            kept |= above
        self._names = {place: nid for place, nid in self._names.items() if nid in kept}
        for nid in [nid for nid in self.counts if nid not in kept]:
            self.filesystem.forget(nid, self.counts.pop(nid))


class Mounted:
    """A job that is mounted without a kernel, over a store that is its own."""

    def __init__(self, store: Store, fetch: Callable[[str, str], Awaitable[None]] | None = None) -> None:
        store.ensure_job(JOB, 1)
        store.recover()
        self.store = store
        self.work = store.layout.work(JOB)
        self.root_fd = os.open(self.work, os.O_RDONLY | os.O_DIRECTORY)
        self._clock = MockClock(autojump_threshold=0)
        self.area = Area(self.root_fd, store.layout.pending(JOB), Settings(), self._clock.current_time)
        recover(self.area, store, JOB, store.layout.pending(JOB))
        self.kernel = Kernel()
        self.uses = store.uses("a mount of job")
        forget = self.kernel.forget_name
        self.filesystem = job_filesystem(store, JOB, self.root_fd, self.area, self.uses, forget, fetch=fetch)
        self.kernel.filesystem = self.filesystem

    def commit(self) -> None:
        """What `checkpoint commit` asks for: all that is complete is committed now."""

        async def drain() -> None:
            committer = Committer(self.area, self.store, JOB)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(committer.run)
                await committer.drain()
                nursery.cancel_scope.cancel()

        trio.run(drain, clock=self._clock)

    def close(self) -> None:
        give_back(self.filesystem)
        self.uses.close()
        os.close(self.root_fd)


@contextmanager
def mounted(root: Path, fetch: Callable[[str, str], Awaitable[None]] | None = None) -> Iterator[Mounted]:
    with Store.open(root) as store:
        mount = Mounted(store, fetch)
        try:
            yield mount
        finally:
            mount.close()
