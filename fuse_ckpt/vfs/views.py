"""Places of the read view as inodes and open files. Every call that would write says EROFS."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from fuse_ckpt.errors import CorruptBlob
from fuse_ckpt.store import Store
from fuse_ckpt.vfs.attributes import Attributes
from fuse_ckpt.vfs.handles import ViewFile
from fuse_ckpt.vfs.inodes import Inode, InodeTable
from fuse_ckpt.vfs.snapshots import DIRECTORY_MODE, Node, Snapshots

LASTING = 3600.0  # seconds; committed bytes and names never change

ViewKey = tuple[str, ...]


class ViewInode(Inode):
    """A place in the read view: the view it is in (None: the list of jobs) and its path there."""

    def __init__(self, nid: int, key: ViewKey, view: Snapshots | None, path: tuple[str, ...], node: Node) -> None:
        super().__init__(nid, key)
        self.view = view
        self.path = path
        self.node = node


class Views:
    """The read view as inodes: of one job below `.checkpoints`, or of all jobs. `uid`, `gid`: the mount's owner.

    `also`: a checkpoint that is shown by id whatever its job, for it is the mount's input.
    """

    def __init__(self, table: InodeTable, store: Store, uid: int, gid: int, also: str | None = None) -> None:
        self._table = table
        self._store = store
        self._uid, self._gid = uid, gid
        self._also = also
        self._snapshots: dict[str, Snapshots] = {}

    def root(self, job: str | None) -> ViewInode:
        """The top of one job's view, or of the list of jobs."""
        node = Node(DIRECTORY_MODE, 0, lasting=False)
        return self._inode(("jobs",) if job is None else ("job", job), job, (), node)

    def lookup(self, parent: ViewInode, name: str) -> Attributes:
        if parent.view is None:
            if name not in {job.name for job in self._store.jobs()}:
                raise _missing()
            return self.found(self.root(name))
        path = (*parent.path, name)
        tree = parent.node.tree
        node = parent.view.node(path) if tree is None else tree.node((*parent.node.inner, name))
        if node is None:
            raise _missing()
        job = parent.key[1] if isinstance(parent.key, tuple) else ""
        key = ("view", job, str(node.edition), *path) if node.same is None else ("file", *node.same)
        return self.found(self._inode(key, job, path, node))

    def found(self, inode: ViewInode) -> Attributes:
        """The attributes of an inode that the kernel has just been told of."""
        inode.lookups += 1
        return self.attributes(inode)

    def attributes(self, inode: ViewInode) -> Attributes:
        if not inode.node.lasting and inode.view is not None:
            now = inode.view.node(inode.path)
            if now is not None and now.edition == inode.node.edition:
                inode.node = now
        node = inode.node
        timeout = LASTING if node.lasting else 0.0
        return Attributes(
            nid=inode.nid,
            mode=node.mode,
            nlink=2 if node.mode & 0o170000 == 0o040000 else 1,
            uid=self._uid,
            gid=self._gid,
            size=node.size,
            mtime_ns=node.mtime_ns,
            atime_ns=node.mtime_ns,
            ctime_ns=node.mtime_ns,
            blocks=(node.size + 511) // 512,
            entry_timeout=timeout,
            attr_timeout=timeout,
        )

    def target(self, inode: ViewInode) -> str:
        self.attributes(inode)  # `latest` may point elsewhere by now
        return inode.node.target

    def names(self, inode: ViewInode) -> list[bytes]:
        if inode.view is None:
            return [os.fsencode(job.name) for job in self._store.jobs()]
        tree = inode.node.tree
        names = inode.view.names(inode.path) if tree is None else tree.names(inode.node.inner)
        return [os.fsencode(name) for name in names]

    def open(self, inode: ViewInode, flags: int) -> ViewFile:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise read_only()
        inode.handles += 1
        try:
            return ViewFile(inode, self._blob(inode.node.digest) if inode.node.digest else None, inode.node.data or b"")
        except BaseException:
            inode.handles -= 1
            raise

    def _blob(self, digest: str) -> int:
        try:
            return os.open(self._store.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise CorruptBlob(f"the blob {digest} is missing from the store") from None

    def _inode(self, key: ViewKey, job: str | None, path: tuple[str, ...], node: Node) -> ViewInode:
        inode = self._table.find(key)
        if inode is None:
            view = None if job is None else self._snapshots.setdefault(job, Snapshots(self._store, job, self._also))
            make: Callable[[int], Inode] = lambda nid: ViewInode(nid, key, view, path, node)  # noqa: E731
            inode = self._table.add(key, make)
        assert isinstance(inode, ViewInode)
        inode.node = node
        return inode


def read_only() -> OSError:
    return OSError(errno.EROFS, os.strerror(errno.EROFS))


def _missing() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))
