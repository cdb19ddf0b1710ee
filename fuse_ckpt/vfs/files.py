"""Open files: handles, the bytes behind them, and how a sealed file is made writable again.

A sealed file that is opened for writing, truncated or appended to becomes another inode: a new file takes all its
names, and the call is answered ESTALE. The kernel then looks the name up again, finds the new inode, and repeats the
call, unseen by the program (path_openat and do_sys_truncate retry once with LOOKUP_REVAL). Whoever holds the old inode
keeps its bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import trio

from fuse_ckpt.model import InodeKey
from fuse_ckpt.staging import is_task_of, state_of
from fuse_ckpt.vfs.attributes import Attributes, Caller
from fuse_ckpt.vfs.copying import copy_file
from fuse_ckpt.vfs.durability import make_durable
from fuse_ckpt.vfs.handles import Handle
from fuse_ckpt.vfs.inodes import WorkInode
from fuse_ckpt.vfs.output import OutputTree
from fuse_ckpt.vfs.syscalls import open_unleased

_AGAIN = 1.0  # seconds within which the kernel has repeated a call that was answered ESTALE


class WorkFiles:
    """Opening and closing in the working tree. `scratch` is a directory of the same filesystem, for half-made files.

    `forget_name(directory's node id, name)` tells the kernel that a name which it remembers means another inode now.
    `durable`: a close waits for the disk.
    """

    def __init__(
        self, tree: OutputTree, scratch: str, forget_name: Callable[[int, bytes], None], durable: bool = False
    ) -> None:
        self._durable = durable
        self._tree = tree
        self._area = tree.area
        self._scratch = scratch
        self._forget_name = forget_name
        self._serial = 0
        self._stale: dict[int, float] = {}  # tasks that were answered ESTALE, and when

    def create(self, parent: WorkInode, name: bytes, mode: int, caller: Caller) -> tuple[Handle, Attributes]:
        attributes, fd = self._tree.create(parent, name, mode, caller)
        inode = self._tree.table[attributes.nid]
        assert isinstance(inode, WorkInode)
        inode.backing.writable = fd
        inode.backing.writers += 1
        inode.handles += 1
        process = self._area.opened(self._tree.path(parent, name), inode.inode_key, caller.task, changed=True)
        return Handle(inode, fd, True, process=process), attributes

    def open_now(self, inode: WorkInode, flags: int, caller: Caller) -> Handle | None:
        """Open a file in this step; None where `open_sealed` must wait for a copy."""
        self._check_there(inode, caller)
        truncate = bool(flags & os.O_TRUNC)
        if flags & os.O_ACCMODE == os.O_RDONLY and not truncate:
            return self._open_to_read(inode)
        if inode.is_breaking() or (inode.inode_key in self._area.sealed and not truncate):
            return None
        if truncate:
            self._about_to_lose(inode, caller)
            self._unseal_empty(inode, caller)
        return self._opened(inode, flags, caller)

    async def open_sealed(self, inode: WorkInode, flags: int, caller: Caller) -> Handle:
        await self._unseal(inode, 0 if flags & os.O_TRUNC else None, caller)
        return self._opened(inode, flags, caller)

    def _opened(self, inode: WorkInode, flags: int, caller: Caller) -> Handle:
        truncate = bool(flags & os.O_TRUNC)
        handle = self._open_to_write(inode, flags)
        try:
            if truncate:
                os.ftruncate(handle.fd, 0)
                handle.before = None
            if inode.names:
                path = os.fsdecode(inode.path())
                handle.process = self._area.opened(path, inode.inode_key, caller.task, changed=truncate)
        except BaseException:
            self.release(handle)
            raise
        return handle

    def flush(self, handle: Handle, task: int | None) -> Callable[[], Awaitable[None]] | None:
        """A descriptor is closed; returns what the close has to wait for, if anything."""
        self._note_closer(handle, task)
        if not (self._durable and handle.writable) or handle.before == _state(os.fstat(handle.fd)):
            return None
        return partial(make_durable, handle)

    def _note_closer(self, handle: Handle, task: int | None) -> None:
        """A descriptor is closed, and whoever closes it waits for us: the moment to see whether its process is dying.

        A forked worker's death is not its parent's, so only the process that opened the file counts.
        """
        handle.flushed = True
        if not handle.writable or (task is not None and not is_task_of(task, handle.process)):
            return
        alive, death = state_of(handle.process)
        if alive or death is not None:  # else a worker closes what its dead parent left
            handle.death = death

    async def truncate(self, inode: WorkInode, size: int, handle: Handle | None, caller: Caller) -> None:
        """Set a file's size, by an open handle or by path."""
        if handle is not None:
            os.ftruncate(handle.fd, size)
            return
        self._check_there(inode, caller)
        if size < self._tree.status(inode).st_size:
            self._about_to_lose(inode, caller)
        await self._unseal(inode, size, caller)
        own = self._open_to_write(inode, os.O_WRONLY)
        try:
            os.ftruncate(own.fd, size)
            if caller.uid != 0:
                own.drop_set_ids()
            if inode.names:
                self._area.opened(os.fsdecode(inode.path()), inode.inode_key, caller.task, changed=True)
        finally:
            self.release(own)

    def release(self, handle: Handle) -> None:
        """The last close of a handle; the staging area hears whether the bytes changed."""
        inode = handle.inode
        assert isinstance(inode, WorkInode)
        changed = False
        if handle.writable:
            status = os.fstat(handle.fd)
            changed = handle.before != _state(status)
            if changed and inode.backing_id:
                # The kernel wrote with our credentials, so it left the bits that a write by anybody else takes away.
                handle.drop_set_ids()
        inode.backing.release(handle.writable)
        inode.handles -= 1
        if handle.writable:
            if not changed and inode.backing_id:
                self._doubt(inode, status)
            names = [self._tree.path(*place) for place in self._all_names(inode, status)] if changed else ()
            self._area.released(inode.inode_key, changed=changed, death=handle.unsafe or handle.death, names=names)
        self._tree.table.settle(inode)

    def _doubt(self, inode: WorkInode, status: os.stat_result) -> None:
        """Under passthrough a mapping outlives the handle that it was made by, and may change the file yet."""
        if inode.backing.writers == 0 and inode.names:
            path = os.fsdecode(inode.path())
            self._area.doubts.add(path, inode.inode_key, status.st_size, status.st_mtime_ns, self._area.clock())
            self._area.wake()

    def _open_to_read(self, inode: WorkInode) -> Handle:
        backing = inode.backing
        if backing.fd is None:
            backing.fd = self._descriptor(inode, os.O_RDONLY)
        backing.readers += 1
        inode.handles += 1
        return Handle(inode, backing.fd)

    def _open_to_write(self, inode: WorkInode, flags: int) -> Handle:
        backing = inode.backing
        if backing.writable is None:
            try:
                backing.writable = self._descriptor(inode, os.O_RDWR)
            except PermissionError:  # write-only by its mode, and we are not root
                if flags & os.O_ACCMODE != os.O_WRONLY:
                    raise
                backing.writable = self._descriptor(inode, os.O_WRONLY)
        backing.writers += 1
        inode.handles += 1
        return Handle(inode, backing.writable, True, _state(os.fstat(backing.writable)))

    def _descriptor(self, inode: WorkInode, flags: int) -> int:
        flags |= os.O_CLOEXEC  # without blocking: a FIFO put there behind our back must not stop the mount
        if not inode.names and inode.backing.any is not None:
            return open_unleased(f"/proc/self/fd/{inode.backing.any}", flags)
        path, dir_fd = inode.place()
        fd = open_unleased(path, flags | os.O_NOFOLLOW, dir_fd)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != (inode.inode_key.dev, inode.inode_key.ino):
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    # -- breaking a seal ----------------------------------------------------------------------------------------------

    async def _unseal(self, inode: WorkInode, size: int | None, caller: Caller) -> None:
        """Make a sealed inode's names those of a file that may be written: its first `size` bytes, or all (None).

        Where nobody has the inode open, its node id goes over to the new file, and the caller goes on. Where somebody
        has, that one keeps the old bytes, and the answer is ESTALE. It may come once only for one system call, so that
        one is remembered.
        """
        async with inode.breaking:
            if inode.names and inode.inode_key in self._area.sealed:
                with self._successor(inode) as (source, fresh):
                    await trio.to_thread.run_sync(copy_file, source, fresh, size)
                    self._replace(inode, fresh)
        self._check_unsealed(inode, caller)

    def _unseal_empty(self, inode: WorkInode, caller: Caller) -> None:
        """The same for O_TRUNC, which needs no copy: in one step."""
        if inode.names and inode.inode_key in self._area.sealed:
            with self._successor(inode) as (source, fresh):
                copy_file(source, fresh, 0)
                self._replace(inode, fresh)
        self._check_unsealed(inode, caller)

    @contextmanager
    def _successor(self, inode: WorkInode) -> Iterator[tuple[int, str]]:
        self._serial += 1
        fresh = f"{self._scratch}/break-{os.getpid()}-{self._serial}"
        source = self._descriptor(inode, os.O_RDONLY)
        try:
            yield source, fresh
        finally:
            os.close(source)
            _remove(fresh)

    def _check_unsealed(self, inode: WorkInode, caller: Caller) -> None:
        if inode.inode_key in self._area.sealed:
            self._answer_stale(caller)
        self._check_there(inode, caller)

    def _check_there(self, inode: WorkInode, caller: Caller) -> None:
        """Raise where the last name has gone since the kernel looked it up: it looks again, but once only."""
        if not (inode.names or inode.handles):
            if self._is_repeated(caller):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._answer_stale(caller)

    def _answer_stale(self, caller: Caller) -> NoReturn:
        now = self._area.clock()
        self._stale = {task: when for task, when in self._stale.items() if now - when < _AGAIN}
        self._stale[caller.task] = now
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _is_repeated(self, caller: Caller) -> bool:
        """Whether this call is the kernel's second try of one that was answered ESTALE."""
        return self._area.clock() - self._stale.get(caller.task, -_AGAIN) < _AGAIN

    def _replace(self, inode: WorkInode, fresh: str) -> None:
        status = os.stat(fresh)
        key = InodeKey(status.st_dev, status.st_ino)
        names = self._all_names(inode, self._tree.status(inode))
        for number, (parent, name) in enumerate(names):
            times = os.fstat(parent.descriptor)
            spare = f"{fresh}.{number}"
            os.link(fresh, spare)
            try:
                os.rename(spare, name, dst_dir_fd=parent.descriptor)
            finally:
                _remove(spare)
            os.utime(f"/proc/self/fd/{parent.descriptor}", ns=(times.st_atime_ns, times.st_mtime_ns))
            self._area.sealed.names_changed(inode.inode_key, -1)
        self._area.sealed.created(key)
        if inode.handles == 0:
            self._tree.table.rekey(inode, key)
            inode.inode_key = key
            return
        for parent, name in names:
            parent.forget_name(name)
            self._tree.table.settle(parent)
            if len(names) > 1:  # with one name it is the one that the kernel is about to look up again
                self._forget_name(parent.nid, name)

    def _about_to_lose(self, inode: WorkInode, caller: Caller) -> None:
        """Have what is about to be rewritten sealed first, under each of its names; not by a call that was told ESTALE
        just now: a seal would make it ESTALE again, and that one would reach the program."""
        if not self._is_repeated(caller):
            for parent, name in list(inode.names):
                self._area.about_to_lose(self._tree.path(parent, name), rewritten=True)

    def _all_names(self, inode: WorkInode, status: os.stat_result) -> list[tuple[WorkInode, bytes]]:
        names = list(inode.names)
        links = status.st_nlink
        if links - self._area.sealed.hidden_links(inode.inode_key, links) > len(names):
            self._tree.discover_names(inode)
            names = list(inode.names)
        return names


def _state(status: os.stat_result) -> tuple[int, int, int]:
    """What differs if a file was written; ctime too, for a program may set the mtime back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
