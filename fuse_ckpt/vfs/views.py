"""Places of the read view as inodes and open files. Every call that would write says EROFS."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial

from fuse_ckpt.errors import CorruptBlob
from fuse_ckpt.model import Checkpoint, State
from fuse_ckpt.store import Store, Uses
from fuse_ckpt.vfs.attributes import Attributes
from fuse_ckpt.vfs.handles import ViewFile, read_only
from fuse_ckpt.vfs.inodes import Inode, InodeTable
from fuse_ckpt.vfs.snapshots import DIRECTORY_MODE, Node, Snapshots

PUSHED = ".pushed"  # among the jobs, where no job can be called so: the checkpoints that belong to none
LASTING = 3600.0  # seconds; committed bytes and names never change
_SHOWN = frozenset({State.AVAILABLE, State.FAILED})

ViewKey = tuple[str, ...]
Fetch = Callable[[str, str], Awaitable[None]]


class ViewInode(Inode):
    """A place in the read view: the view it is in (None: the list of jobs) and its path there."""

    def __init__(self, nid: int, key: ViewKey, view: Snapshots | None, path: tuple[str, ...], node: Node) -> None:
        super().__init__(nid, key)
        self.view = view
        self.path = path
        self.node = node
        self.dropped: Callable[[], None] = lambda: None

    def drop(self) -> list[Inode]:
        self.dropped()
        return []


class Views:
    """The read view as inodes: of one job below `.checkpoints`, or of all jobs. `uid`, `gid`: the mount's owner.

    `also`: a checkpoint that is shown by id whatever its job, for it is the mount's input. `uses` is told of every
    checkpoint of which the kernel knows a place; `forget_name` makes the kernel look a name up again. `fetch(id,
    digest)` has bytes that are elsewhere be here; None: nobody can.
    """

    def __init__(
        self,
        table: InodeTable,
        store: Store,
        uses: Uses,
        forget_name: Callable[[int, bytes], None],
        uid: int,
        gid: int,
        also: str | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self._fetch = fetch
        self._table = table
        self._store = store
        self._uses = uses
        self._forget_name = forget_name
        self._uid, self._gid = uid, gid
        self._also = also
        self._snapshots: dict[str, Snapshots] = {}
        self._known: dict[str, set[ViewInode]] = {}  # of each checkpoint of which the kernel knows anything

    def root(self, job: str | None) -> ViewInode:
        """The top of one job's view, or of the list of jobs."""
        node = Node(DIRECTORY_MODE, 0, lasting=False)
        return self._inode(("jobs",) if job is None else ("job", job), job, (), node)

    def lookup(self, parent: ViewInode, name: str) -> Attributes:
        if parent.view is None:
            if name not in self._jobs():
                raise _missing()
            return self.found(self.root("" if name == PUSHED else name))
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
            return [os.fsencode(name) for name in self._jobs()]
        tree = inode.node.tree
        names = inode.view.names(inode.path) if tree is None else tree.names(inode.node.inner)
        return [os.fsencode(name) for name in names]

    def is_elsewhere(self, inode: ViewInode, flags: int) -> bool:
        """Whether an open of the file must wait until its bytes are here; what is refused need not."""
        if self._fetch is None or not inode.node.digest or flags & os.O_ACCMODE != os.O_RDONLY:
            return False
        return not self._store.blob_path(inode.node.digest).exists()

    async def open_fetched(self, inode: ViewInode, flags: int) -> ViewFile:
        """As `open`, once the bytes are here. Errors: what `fetch` raises."""
        inode.handles += 1  # it is not to go meanwhile
        try:
            if self._fetch is not None:
                await self._fetch(inode.node.checkpoint, inode.node.digest)
            return self.open(inode, flags)
        finally:
            inode.handles -= 1

    def open(self, inode: ViewInode, flags: int) -> ViewFile:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise read_only()
        inode.handles += 1
        try:
            return ViewFile(inode, self._blob(inode.node.digest) if inode.node.digest else None, inode.node.data or b"")
        except BaseException:
            inode.handles -= 1
            raise

    def forget(self, checkpoint: Checkpoint) -> None:
        """A checkpoint was deleted: have the kernel let go of all of it that nobody uses.

        To be said again as long as somebody does: what was in use stays in the kernel's memory when it is no more.
        """
        directories = [one for one in self._known.get(checkpoint.id, ()) if one.node.tree is not None]
        inside = [(one.nid, name) for one in directories for name in self.names(one)]
        for directory, name in inside + self._doors(checkpoint):
            self._forget_name(directory, name)

    def _doors(self, checkpoint: Checkpoint) -> list[tuple[int, bytes]]:
        """The names of its root, which lie in the view's own directories."""
        inside = f"by-name/{checkpoint.name}@{checkpoint.ordinal}", f"by-id/{checkpoint.id}", f"layout/{checkpoint.id}"
        found = []
        for job in self._snapshots:
            for path in inside:
                above, _, name = path.rpartition("/")
                parent = self._table.find(("view", job, "0", *above.split("/")))
                editions = [str(edition) for edition in range(checkpoint.revision + 1)]
                known = (self._table.find(("view", job, edition, *path.split("/"))) for edition in editions)
                if parent is not None and any(known):
                    found.append((parent.nid, os.fsencode(name)))
        return found

    def _jobs(self) -> list[str]:
        """What the list of jobs holds."""
        pushed = [PUSHED] if self._store.checkpoints("", states=_SHOWN, limit=1) else []
        return [*pushed, *(job.name for job in self._store.jobs())]

    def _blob(self, digest: str) -> int:
        try:
            return os.open(self._store.blob_path(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise CorruptBlob(f"the blob {digest} is missing from the store") from None

    def _inode(self, key: ViewKey, job: str | None, path: tuple[str, ...], node: Node) -> ViewInode:
        inode = self._table.find(key)
        if inode is None:
            view = (
                None
                if job is None
                else self._snapshots.setdefault(
                    job, Snapshots(self._store, job, self._also, fetches=self._fetch is not None)
                )
            )
            if node.checkpoint:
                self._uses.hold(node.checkpoint)
            made = self._table.add(key, lambda nid: ViewInode(nid, key, view, path, node))
            assert isinstance(made, ViewInode)
            if node.checkpoint:
                self._known.setdefault(node.checkpoint, set()).add(made)
                made.dropped = partial(self._forgotten, node.checkpoint, made)
            inode = made
        assert isinstance(inode, ViewInode)
        inode.node = node
        return inode

    def _forgotten(self, checkpoint: str, inode: ViewInode) -> None:
        known = self._known[checkpoint]
        known.remove(inode)
        if not known:
            del self._known[checkpoint]
        self._uses.release(checkpoint)


def _missing() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))
