"""The inodes that the kernel knows, and how each is reached.

A node id stands for a backing inode of the working tree, or for a place in the read view. It is never used again, even
where the disk uses an inode number again, so a handle or a mapping of a file that has gone can never show another one.

Directories of the working tree keep a path descriptor (O_PATH), files are reached by name below their directory's:
names stay right when a directory is moved, no path is too long, and no symlink is ever followed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable

import trio

from fuse_ckpt.model import InodeKey

ROOT = 1  # node id of the mount's root, by FUSE's definition


class Inode:
    """A node id with its lookup count. `key` finds it again: unique among the inodes that can still be looked up."""

    def __init__(self, nid: int, key: Hashable) -> None:
        self.nid = nid
        self.key = key
        self.lookups = 0
        self.handles = 0  # open files and directories
        self.opens = 0  # open files as the kernel counts them
        self.backing_id = (
            0  # what the kernel moves its data by; 0: the daemon does; fixed from the first open to the last
        )

    def idle(self) -> bool:
        return self.lookups == 0 and self.handles == 0 and self.nid != ROOT

    def drop(self) -> list[Inode]:
        """Give back what it holds; returns the inodes that may be idle because of that."""
        return []


class Backing:
    """The open descriptors of one backing inode, shared by all its handles: one to read, one to write if need be."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self.writable: int | None = None
        self.readers = 0
        self.writers = 0
        self.unsettled = False  # was open for writing: a mapping may go on changing it unseen by the kernel's caches

    def release(self, writable: bool) -> None:
        """One handle less. The writable descriptor goes with the last writer: a seal must not find it open."""
        if writable:
            self.writers -= 1
            if self.writers == 0 and self.writable is not None:
                os.close(self.writable)
                self.writable = None
        else:
            self.readers -= 1
            if self.readers == 0 and self.fd is not None:
                os.close(self.fd)
                self.fd = None

    @property
    def any(self) -> int | None:
        return self.fd if self.fd is not None else self.writable


class WorkInode(Inode):
    """An inode of the working tree. `names`: where it is known to be; more hard links may exist on the disk."""

    def __init__(self, nid: int, key: InodeKey, mode: int) -> None:
        super().__init__(nid, key)
        self.inode_key = key
        self.mode = mode
        self.names: dict[tuple[WorkInode, bytes], None] = {}
        self.children: dict[bytes, WorkInode] = {}
        self.fd: int | None = None  # O_PATH; directories only
        self.bare = False  # known to have no xattrs
        self.backing = Backing()
        self._breaking: trio.Lock | None = None

    @property
    def breaking(self) -> trio.Lock:
        """Held while its seal is broken."""
        self._breaking = self._breaking or trio.Lock()
        return self._breaking

    def is_breaking(self) -> bool:
        return self._breaking is not None and self._breaking.locked()

    def idle(self) -> bool:
        return super().idle() and not self.children

    def drop(self) -> list[Inode]:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        parents = [parent for parent, _ in self.names]
        for parent, name in list(self.names):
            parent.forget_name(name)
        return list(parents)

    def set_name(self, name: bytes, child: WorkInode) -> None:
        """`name` in this directory is `child` from now on."""
        if self.children.get(name) is not child:
            self.forget_name(name)
            self.children[name] = child
            child.names[self, name] = None

    def forget_name(self, name: bytes) -> None:
        child = self.children.pop(name, None)
        if child is not None:
            child.names.pop((self, name), None)

    def place(self) -> tuple[str | bytes, int | None]:
        """A path and a directory descriptor for calls that take both. Raises ESTALE where no name is left."""
        if self.fd is not None:
            return f"/proc/self/fd/{self.fd}", None
        for parent, name in self.names:
            return name, parent.descriptor
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    @property
    def descriptor(self) -> int:
        """The path descriptor of a directory."""
        if self.fd is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self.fd

    def path(self) -> bytes:
        """The path below the root under one of its names; b"" for the root. Raises ESTALE where it has none."""
        parts: list[bytes] = []
        inode = self
        while inode.nid != ROOT:
            if not inode.names:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            inode, name = next(iter(inode.names))
            parts.append(name)
        return b"/".join(reversed(parts))


class InodeTable:
    """All inodes that the kernel holds, by node id and by key."""

    def __init__(self) -> None:
        self._by_nid: dict[int, Inode] = {}
        self._by_key: dict[Hashable, Inode] = {}
        self._next = ROOT

    def __len__(self) -> int:
        return len(self._by_nid)

    def __getitem__(self, nid: int) -> Inode:
        try:
            return self._by_nid[nid]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def find(self, key: Hashable) -> Inode | None:
        return self._by_key.get(key)

    def add(self, key: Hashable, make: Callable[[int], Inode]) -> Inode:
        """Make the inode of `key` with the next node id; the first one made is the root."""
        inode = make(self._next)
        self._next += 1
        self._by_nid[inode.nid] = inode
        self._by_key[key] = inode
        return inode

    def rekey(self, inode: Inode, key: Hashable) -> None:
        """The node id stands for another backing inode from now on; nobody holds the one before."""
        self.detach(inode)
        inode.key = key
        self._by_key[key] = inode

    def detach(self, inode: Inode) -> None:
        """The backing inode has lost its last name: its number may come again and is another file then."""
        if self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]

    def forget(self, nid: int, count: int) -> None:
        """The kernel gives back `count` lookups."""
        inode = self._by_nid.get(nid)
        if inode is not None:
            inode.lookups -= count
            self.settle(inode)

    def settle(self, inode: Inode) -> None:
        """Drop the inode if nobody holds it any more, and then the directories that only it kept."""
        waiting = [inode]
        while waiting:
            one = waiting.pop()
            if one.idle() and self._by_nid.pop(one.nid, None) is not None:
                self.detach(one)
                waiting.extend(one.drop())
