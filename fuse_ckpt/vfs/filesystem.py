"""The filesystem as the kernel asks for it: a call goes to the working tree or to the read view, by the inode's kind.

Plain values in and out; errors are OSErrors with a number, or errors of the store. Synchronous calls are atomic in the
event loop; the asynchronous ones (open, setattr, fsync) say in their own words what may change while they wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable

import trio

from fuse_ckpt.vfs.attributes import Attributes, Caller, Changes, Listing
from fuse_ckpt.vfs.durability import sync
from fuse_ckpt.vfs.files import WorkFiles
from fuse_ckpt.vfs.handles import Handle, Handles, ViewFile, read_only
from fuse_ckpt.vfs.inodes import ROOT, Inode, InodeTable, WorkInode
from fuse_ckpt.vfs.output import OutputTree
from fuse_ckpt.vfs.views import ViewInode, Views

VIEW_NAME = b".checkpoints"


class Filesystem:
    """One mount: a job's output directory with its checkpoints below `.checkpoints`, or all jobs' checkpoints alone.

    `output` and `files` are None for the mount that shows checkpoints alone; `job` is None there.
    """

    def __init__(
        self,
        table: InodeTable,
        views: Views,
        output: OutputTree | None,
        files: WorkFiles | None,
        *,
        job: str | None,
        disk_fd: int,
        show_checkpoints: bool = False,
    ) -> None:
        self._table = table
        self.views = views
        self._output_tree = output
        self._work_files = files
        self._job = job
        self._disk_fd = disk_fd
        self._show_checkpoints = show_checkpoints
        self.handles = Handles()
        self._listings: dict[int, Listing] = {}
        self._next_listing = 1
        if output is None:
            views.root(None)

    @property
    def open_files(self) -> int:
        return len(self.handles)

    @property
    def known_inodes(self) -> int:
        return len(self._table)

    # -- names --------------------------------------------------------------------------------------------------------

    def lookup(self, parent_nid: int, name: bytes) -> Attributes:
        parent = self._table[parent_nid]
        if isinstance(parent, ViewInode):
            return self.views.lookup(parent, os.fsdecode(name))
        if parent.nid == ROOT and name == VIEW_NAME:
            return self.views.found(self.views.root(self._job))
        return self._output.lookup(self._work(parent), name)

    def forget(self, nid: int, count: int) -> None:
        self._table.forget(nid, count)

    def create(self, parent_nid: int, name: bytes, mode: int, caller: Caller) -> tuple[int, Attributes]:
        parent = self._writable(parent_nid, name)
        handle, attributes = self._files.create(parent, name, mode, caller)
        return self.handles.add(handle), attributes

    def mknod(self, parent_nid: int, name: bytes, mode: int, device: int, caller: Caller) -> Attributes:
        return self._output.mknod(self._writable(parent_nid, name), name, mode, device, caller)

    def mkdir(self, parent_nid: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        return self._output.mkdir(self._writable(parent_nid, name), name, mode, caller)

    def symlink(self, parent_nid: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        return self._output.symlink(self._writable(parent_nid, name), name, target, caller)

    def link(self, nid: int, parent_nid: int, name: bytes, caller: Caller) -> Attributes:
        parent = self._writable(parent_nid, name)
        inode = self._table[nid]
        if isinstance(inode, ViewInode):  # another filesystem, as far as a program can tell
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return self._output.link(self._work(inode), parent, name, caller.task)

    def unlink(self, parent_nid: int, name: bytes, caller: Caller) -> None:
        self._output.unlink(self._writable(parent_nid, name, there=True), name, caller.task)

    def rmdir(self, parent_nid: int, name: bytes, caller: Caller) -> None:
        self._output.rmdir(self._writable(parent_nid, name, there=True), name, caller.task)

    def rename(self, nid: int, name: bytes, new_nid: int, new_name: bytes, flags: int, caller: Caller) -> None:
        parent = self._writable(nid, name, there=True)
        self._output.rename(parent, name, self._writable(new_nid, new_name, there=True), new_name, flags, caller.task)

    def readlink(self, nid: int) -> bytes:
        inode = self._table[nid]
        if isinstance(inode, ViewInode):
            return os.fsencode(self.views.target(inode))
        return self._output.readlink(self._work(inode))

    # -- attributes ---------------------------------------------------------------------------------------------------

    def getattr(self, nid: int) -> Attributes:
        inode = self._table[nid]
        if isinstance(inode, ViewInode):
            return self.views.attributes(inode)
        return self._output.attributes(self._work(inode))

    async def setattr(self, nid: int, changes: Changes, fh: int | None, caller: Caller) -> Attributes:
        """Change attributes; a new size waits for the copy of a sealed file, during which anything may happen to it."""
        inode = self._work(self._table[nid])
        if changes.size is not None:
            handle = self.handles[fh] if fh is not None else None
            await self._files.truncate(inode, changes.size, handle if isinstance(handle, Handle) else None, caller)
        self._output.change(inode, changes)
        return self._output.attributes(inode)

    def statfs(self) -> os.statvfs_result:
        return os.fstatvfs(self._disk_fd)

    def has_no_xattrs(self, nid: int) -> bool:
        """Whether an inode is known to have none at all: nobody but this mount gives a file of the working tree any."""
        inode = self._table[nid]
        if isinstance(inode, WorkInode) and not inode.bare:
            with contextlib.suppress(OSError):  # what cannot be listed can still be asked for
                inode.bare = not os.listxattr(self._xattr_path(nid), follow_symlinks=self._follow(nid))
        return not isinstance(inode, WorkInode) or inode.bare

    def setxattr(self, nid: int, name: bytes, value: bytes) -> None:
        inode = self._work(self._table[nid])
        inode.bare = False
        os.setxattr(self._xattr_path(nid, write=True), name, value, follow_symlinks=self._follow(nid))

    def getxattr(self, nid: int, name: bytes) -> bytes:
        return os.getxattr(self._xattr_path(nid), name, follow_symlinks=self._follow(nid))

    def listxattr(self, nid: int) -> list[bytes]:
        if isinstance(self._table[nid], ViewInode):
            return []
        return [os.fsencode(n) for n in os.listxattr(self._xattr_path(nid), follow_symlinks=self._follow(nid))]

    def removexattr(self, nid: int, name: bytes) -> None:
        os.removexattr(self._xattr_path(nid, write=True), name, follow_symlinks=self._follow(nid))

    # -- open files ---------------------------------------------------------------------------------------------------

    async def open(self, nid: int, flags: int, caller: Caller) -> int:
        """Open a file; waits for the copy of a sealed one."""
        fh = self.open_now(nid, flags, caller)
        return fh if fh is not None else await self.open_sealed(nid, flags, caller)

    def open_now(self, nid: int, flags: int, caller: Caller) -> int | None:
        """Open a file in this step; None where it is sealed and must be copied first, or its bytes are elsewhere."""
        if isinstance(inode := self._table[nid], ViewInode):
            return None if self.views.is_elsewhere(inode, flags) else self.handles.add(self.views.open(inode, flags))
        handle = self._files.open_now(self._work(inode), flags, caller)
        return None if handle is None else self.handles.add(handle)

    async def open_sealed(self, nid: int, flags: int, caller: Caller) -> int:
        """What `open_now` could not do; anything may happen to the file while it is copied, or fetched."""
        if isinstance(inode := self._table[nid], ViewInode):
            return self.handles.add(await self.views.open_fetched(inode, flags))
        return self.handles.add(await self._files.open_sealed(self._work(inode), flags, caller))

    def read(self, fh: int, offset: int, size: int) -> bytes:
        return self.handles[fh].read(offset, size)

    def read_into(self, fh: int, offset: int, buffer: memoryview) -> int:
        """As `read`, without a copy; returns how many bytes there were."""
        return self.handles[fh].read_into(offset, buffer)

    def write(self, fh: int, offset: int, data: bytes | memoryview) -> int:
        return self.handles[fh].write(offset, data)

    def drop_set_ids(self, fh: int) -> None:
        """Whoever writes may not keep them; on a disk the kernel sees to that, here it writes with our rights."""
        self.handles[fh].drop_set_ids()

    def flush(self, fh: int, task: int | None = None) -> Callable[[], Awaitable[None]] | None:
        """A descriptor is closed, by `task` where that is known; returns what that has to wait for, if anything."""
        handle = self.handles[fh]
        return self._files.flush(handle, task) if isinstance(handle, Handle) else None

    async def fsync(self, fh: int, data_only: bool) -> None:
        """Make the bytes survive a power cut; the handle stays open meanwhile, for the kernel holds it."""
        if isinstance(handle := self.handles[fh], Handle):
            await sync(handle, data_only=data_only)

    def release_all(self) -> None:
        """The kernel has let go of the filesystem: what it had not released yet, it never will.

        A file whose close was never heard of was cut off, whatever it looks like.
        """
        for fh in self.handles.numbers():
            handle = self.handles[fh]
            if isinstance(handle, Handle) and handle.writable and not handle.flushed:
                handle.death = "the mount was taken away while it was open"
            self.release(fh)

    def release(self, fh: int) -> None:
        self.handles.remove(fh, self._close)

    def _close(self, handle: Handle | ViewFile) -> None:
        if isinstance(handle, ViewFile):
            handle.close()
            handle.inode.handles -= 1
            self._table.settle(handle.inode)
        else:
            self._files.release(handle)

    # -- directories --------------------------------------------------------------------------------------------------

    def opendir(self, nid: int) -> int:
        self._table[nid].handles += 1
        fh, self._next_listing = self._next_listing, self._next_listing + 1
        self._listings[fh] = Listing(nid)
        return fh

    def listing(self, fh: int, *, rewound: bool) -> tuple[int, list[bytes]]:
        """The directory's node id and the names in it, as they were when reading began."""
        listing = self._listings[fh]
        if rewound or not listing.filled:
            inode = self._table[listing.nid]
            listing.names = self.views.names(inode) if isinstance(inode, ViewInode) else self._work_names(inode)
            listing.filled = True
        return listing.nid, listing.names

    def releasedir(self, fh: int) -> None:
        inode = self._table[self._listings.pop(fh).nid]
        inode.handles -= 1
        self._table.settle(inode)

    async def fsyncdir(self, fh: int, data_only: bool) -> None:
        """Make a directory's names survive a power cut."""
        inode = self._table[self._listings[fh].nid]
        if not isinstance(inode, WorkInode):
            return
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=inode.descriptor)
        try:
            await trio.to_thread.run_sync(os.fdatasync if data_only else os.fsync, fd)
        finally:
            os.close(fd)

    # -- which side ---------------------------------------------------------------------------------------------------

    @property
    def _output(self) -> OutputTree:
        if self._output_tree is None:
            raise read_only()
        return self._output_tree

    @property
    def _files(self) -> WorkFiles:
        if self._work_files is None:
            raise read_only()
        return self._work_files

    def _work(self, inode: Inode) -> WorkInode:
        if isinstance(inode, WorkInode):
            return inode
        raise read_only()

    def _writable(self, parent_nid: int, name: bytes, *, there: bool = False) -> WorkInode:
        """The directory, if `name` in it may be made or, with `there`, removed or replaced; else EROFS or EEXIST."""
        parent = self._work(self._table[parent_nid])
        if parent.nid == ROOT and name == VIEW_NAME:
            number = errno.EROFS if there else errno.EEXIST
            raise OSError(number, os.strerror(number))
        return parent

    def _work_names(self, inode: Inode) -> list[bytes]:
        names = self._output.names(self._work(inode))
        return [*names, VIEW_NAME] if self._show_checkpoints and inode.nid == ROOT else names

    def _xattr_path(self, nid: int, *, write: bool = False) -> bytes:
        inode = self._table[nid]
        if isinstance(inode, WorkInode):
            return self._output.proc_path(inode)
        number = errno.EROFS if write else errno.ENODATA
        raise OSError(number, os.strerror(number))

    def _follow(self, nid: int) -> bool:
        """Whether `_xattr_path` ends in a descriptor, which is not to be taken for a symlink of the tree's."""
        inode = self._table[nid]
        return isinstance(inode, WorkInode) and (stat.S_ISDIR(inode.mode) or not inode.names)
