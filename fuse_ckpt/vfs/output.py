"""The working view: names and attributes of the output directory, each call one call on the working tree below.

Reports to the staging area what happens, in order. What may destroy a finished draft asks the area first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable

from fuse_ckpt.model import InodeKey
from fuse_ckpt.staging import Area, may_be_written
from fuse_ckpt.vfs.attributes import Attributes, Caller, Changes, of_status
from fuse_ckpt.vfs.inodes import ROOT, InodeTable, WorkInode
from fuse_ckpt.vfs.syscalls import renameat2, status_or_none

# Seconds that the kernel may remember names and attributes: nobody but this mount changes the working tree.
TIMEOUT = 3600.0
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


class OutputTree:
    """The working tree of one job below its root descriptor `root_fd` (which stays the caller's).

    `forget_name(directory's node id, name)` makes the kernel look a name up again.
    """

    def __init__(
        self,
        table: InodeTable,
        root_fd: int,
        area: Area,
        forget_name: Callable[[int, bytes], None] = lambda nid, name: None,
    ) -> None:
        self.table = table
        self.area = area
        self.root_fd = root_fd
        self._forget_name = forget_name
        status = os.fstat(root_fd)
        key = InodeKey(status.st_dev, status.st_ino)
        root = table.add(key, lambda nid: WorkInode(nid, key, status.st_mode))
        assert isinstance(root, WorkInode)
        assert root.nid == ROOT
        root.fd = os.open(".", os.O_PATH | os.O_CLOEXEC, dir_fd=root_fd)
        self.root = root

    # -- looking ------------------------------------------------------------------------------------------------------

    def lookup(self, parent: WorkInode, name: bytes) -> Attributes:
        status = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
        return self._found(parent, name, status)

    def attributes(self, inode: WorkInode) -> Attributes:
        return self._attributes(inode, self.status(inode))

    def status(self, inode: WorkInode) -> os.stat_result:
        open_fd = inode.fd if inode.fd is not None else inode.backing.any
        if open_fd is not None:
            return os.fstat(open_fd)
        path, dir_fd = inode.place()
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    def readlink(self, inode: WorkInode) -> bytes:
        path, dir_fd = inode.place()
        return os.readlink(os.fsencode(path), dir_fd=dir_fd)

    def names(self, inode: WorkInode) -> list[bytes]:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=inode.descriptor)
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    # -- making -------------------------------------------------------------------------------------------------------

    def create(self, parent: WorkInode, name: bytes, mode: int, caller: Caller) -> tuple[Attributes, int]:
        """Make a file; returns its attributes and a descriptor to read and write it by."""
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=parent.descriptor)
        try:
            self._give(parent, name, caller)
            return self._made(parent, name, os.fstat(fd)), fd
        except BaseException:
            os.close(fd)
            raise

    def mknod(self, parent: WorkInode, name: bytes, mode: int, device: int, caller: Caller) -> Attributes:
        os.mknod(name, mode, device, dir_fd=parent.descriptor)
        self._give(parent, name, caller)
        return self._made(parent, name)

    def mkdir(self, parent: WorkInode, name: bytes, mode: int, caller: Caller) -> Attributes:
        os.mkdir(name, mode, dir_fd=parent.descriptor)
        self._give(parent, name, caller)
        return self._made(parent, name)

    def symlink(self, parent: WorkInode, name: bytes, target: bytes, caller: Caller) -> Attributes:
        os.symlink(target, name, dir_fd=parent.descriptor)
        self._give(parent, name, caller)
        made = self._made(parent, name)
        self.area.pointed(os.fsdecode(target))
        return made

    def link(self, inode: WorkInode, parent: WorkInode, name: bytes, task: int) -> Attributes:
        path, dir_fd = inode.place()
        os.link(path, name, src_dir_fd=dir_fd, dst_dir_fd=parent.descriptor, follow_symlinks=False)
        self.area.sealed.names_changed(inode.inode_key, 1)
        for other, known in inode.names:  # the kernel may not remember the names of hard links, see _attributes
            self._forget_name(other.nid, known)
        made = self.lookup(parent, name)
        self.area.arrived(self.path(parent, name), task)
        return made

    # -- removing and renaming ----------------------------------------------------------------------------------------

    def unlink(self, parent: WorkInode, name: bytes, task: int) -> None:
        path = self.path(parent, name)
        self.area.about_to_lose(path, rewritten=False)
        victim = status_or_none(parent.descriptor, name)
        os.unlink(name, dir_fd=parent.descriptor)
        self._forget(parent, name, victim)
        self.area.removed(path, task)

    def rmdir(self, parent: WorkInode, name: bytes, task: int) -> None:
        victim = status_or_none(parent.descriptor, name)
        os.rmdir(name, dir_fd=parent.descriptor)
        self._forget(parent, name, victim)
        self.area.removed(self.path(parent, name), task)

    def rename(
        self, parent: WorkInode, name: bytes, new_parent: WorkInode, new_name: bytes, flags: int, task: int
    ) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        status = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
        replaced = status_or_none(new_parent.descriptor, new_name)
        if replaced is not None and os.path.samestat(status, replaced):
            return  # two links of one file: rename(2) does nothing
        old, new = self.path(parent, name), self.path(new_parent, new_name)
        directory = stat.S_ISDIR(status.st_mode)
        if flags & RENAME_EXCHANGE:
            self.area.about_to_move(old, new, directory=directory)
            self.area.about_to_move(new, old, directory=replaced is not None and stat.S_ISDIR(replaced.st_mode))
            renameat2(parent.descriptor, name, new_parent.descriptor, new_name, flags)
            self._swap_names(parent, name, new_parent, new_name)
            self.area.exchanged(old, new, task)
            return
        if replaced is None or not flags:  # mv(1) forbids to replace before it tries the other way
            self.area.about_to_move(old, new, directory=directory)
            if not directory:
                self.area.about_to_lose(new, rewritten=True)
        renameat2(parent.descriptor, name, new_parent.descriptor, new_name, flags)
        self._forget(new_parent, new_name, replaced)
        moved = parent.children.get(name)
        parent.forget_name(name)
        if moved is not None:
            new_parent.set_name(new_name, moved)
        self.table.settle(parent)
        self.area.renamed(old, new, task, directory=directory)

    # -- attributes ---------------------------------------------------------------------------------------------------

    def change(self, inode: WorkInode, changes: Changes) -> None:
        """chmod, chown and utimens; the size is `files`' business."""
        path, dir_fd = self._place_or_open(inode)
        if changes.mode is not None:
            if stat.S_ISLNK(inode.mode):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            os.chmod(path, stat.S_IMODE(changes.mode), dir_fd=dir_fd)
        follow = inode.fd is not None or dir_fd is None
        if changes.uid is not None or changes.gid is not None:
            uid = -1 if changes.uid is None else changes.uid
            gid = -1 if changes.gid is None else changes.gid
            os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=follow)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            status = self.status(inode)
            atime = status.st_atime_ns if changes.atime_ns is None else changes.atime_ns
            mtime = status.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
            os.utime(path, ns=(atime, mtime), dir_fd=dir_fd, follow_symlinks=follow)
            self.area.doubts.retimed(inode.inode_key, status.st_mtime_ns, mtime)

    def proc_path(self, inode: WorkInode) -> bytes:
        """A path for the calls that take no directory descriptor (xattrs); its last part is not to be followed."""
        path, dir_fd = self._place_or_open(inode)
        return os.fsencode(path) if dir_fd is None else b"/proc/self/fd/%d/%s" % (dir_fd, os.fsencode(path))

    def _place_or_open(self, inode: WorkInode) -> tuple[str | bytes, int | None]:
        if inode.fd is None and not inode.names and inode.backing.any is not None:
            return f"/proc/self/fd/{inode.backing.any}", None
        return inode.place()

    def discover_names(self, inode: WorkInode) -> None:
        """Find every name that the inode has in the tree: hard links that the kernel never looked up."""
        waiting, visited = [self.root], []
        while waiting:
            directory = waiting.pop()
            visited.append(directory)
            for name in self.names(directory):
                status = os.stat(name, dir_fd=directory.descriptor, follow_symlinks=False)
                if InodeKey(status.st_dev, status.st_ino) == inode.inode_key:
                    directory.set_name(name, inode)
                elif stat.S_ISDIR(status.st_mode):
                    found = self.table[self._found(directory, name, status).nid]
                    found.lookups -= 1  # not the kernel's
                    assert isinstance(found, WorkInode)
                    waiting.append(found)
        for directory in reversed(visited):
            self.table.settle(directory)

    # -- keeping track ------------------------------------------------------------------------------------------------

    def path(self, parent: WorkInode, name: bytes) -> str:
        """The path below the root, as staging names it."""
        above = parent.path()
        return os.fsdecode(above + b"/" + name if above else name)

    def _found(self, parent: WorkInode, name: bytes, status: os.stat_result) -> Attributes:
        key = InodeKey(status.st_dev, status.st_ino)
        inode = self.table.find(key)
        if inode is None:
            fd = None
            if stat.S_ISDIR(status.st_mode):
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                fd = os.open(name, flags, dir_fd=parent.descriptor)
            inode = self.table.add(key, lambda nid: WorkInode(nid, key, status.st_mode))
            assert isinstance(inode, WorkInode)
            inode.fd = fd
        assert isinstance(inode, WorkInode)
        parent.set_name(name, inode)
        inode.lookups += 1
        return self._attributes(inode, status)

    def _attributes(self, inode: WorkInode, status: os.stat_result) -> Attributes:
        hidden = 0 if inode.fd is not None else self.area.sealed.hidden_links(inode.inode_key, status.st_nlink)
        if inode.names:
            hidden = min(hidden, status.st_nlink - 1)  # the blob may have been collected a moment ago
        found = of_status(inode.nid, status, hidden, 0.0 if self._is_unsettled(inode) else TIMEOUT, TIMEOUT)
        if found.nlink > 1 and inode.fd is None:
            found.entry_timeout = 0.0  # each name is looked up anew: a write by one of them may give all another inode
        return found

    def _is_unsettled(self, inode: WorkInode) -> bool:
        """Whether the file may change without the kernel's knowing: under passthrough a mapping outlives its handle."""
        backing = inode.backing
        if backing.unsettled and backing.writers == 0 and inode.names:
            path, dir_fd = inode.place()
            with contextlib.suppress(OSError):  # not ours to read: then nobody knows, and the kernel asks each time
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
                backing.unsettled = may_be_written(fd)
                os.close(fd)
        return backing.unsettled

    def _made(self, parent: WorkInode, name: bytes, status: os.stat_result | None = None) -> Attributes:
        status = status or os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
        key = InodeKey(status.st_dev, status.st_ino)
        self.area.sealed.created(key)
        before = self.table.find(key)
        if before is not None:  # the disk uses its number again
            self.table.detach(before)
        return self._found(parent, name, status)

    def _give(self, parent: WorkInode, name: bytes, caller: Caller) -> None:
        """A file belongs to whoever made it; the group is the directory's where that is set-group-id."""
        if os.geteuid() != 0 or (caller.uid == 0 and caller.gid == 0):
            return
        inherits = os.fstat(parent.descriptor).st_mode & stat.S_ISGID
        os.chown(name, caller.uid, -1 if inherits else caller.gid, dir_fd=parent.descriptor, follow_symlinks=False)

    def _forget(self, parent: WorkInode, name: bytes, victim: os.stat_result | None) -> None:
        """`name` has gone; `victim`: what it was. After the last name the disk may use the inode's number again."""
        child = parent.children.get(name)
        parent.forget_name(name)
        if victim is not None:
            key = InodeKey(victim.st_dev, victim.st_ino)
            names = victim.st_nlink - self.area.sealed.hidden_links(key, victim.st_nlink)
            self.area.sealed.names_changed(key, -1)
            found = self.table.find(key)
            if found is not None and (names <= 1 or stat.S_ISDIR(victim.st_mode)):
                self.table.detach(found)
        for inode in (child, parent):
            if inode is not None:
                self.table.settle(inode)

    def _swap_names(self, parent: WorkInode, name: bytes, new_parent: WorkInode, new_name: bytes) -> None:
        one, other = parent.children.get(name), new_parent.children.get(new_name)
        parent.forget_name(name)
        new_parent.forget_name(new_name)
        if one is not None:
            new_parent.set_name(new_name, one)
        if other is not None:
            parent.set_name(name, other)
