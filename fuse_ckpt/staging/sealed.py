"""Which inodes of the working tree may never be written again, and how many of an inode's links training can see."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from fuse_ckpt.model import InodeKey, Kind
from fuse_ckpt.staging.journal import Sealed
from fuse_ckpt.staging.worktree import Found


class SealedInodes:
    """The blobs and the members of sealed drafts among the inodes of one working tree."""

    def __init__(self) -> None:
        self._blobs: set[InodeKey] = set()
        self._linked: Counter[InodeKey] = Counter()  # links in pending/
        self._hidden: set[InodeKey] = set()  # about to be linked there
        # While a draft is sealed and committed its links come and go in a thread: the names that training sees are
        # counted instead.
        self._names: dict[InodeKey, int] = {}
        self._touched: set[InodeKey] = set()  # whose links are others since `looking`

    def __contains__(self, key: InodeKey) -> bool:
        """Whether the inode belongs to a sealed draft or is a blob: nobody may ever write it again."""
        return key in self._blobs or key in self._linked

    def hidden_links(self, key: InodeKey, links: int) -> int:
        """How many of the inode's `links` (st_nlink) are the store's own."""
        names = self._names.get(key)
        return int(key in self._blobs) if names is None else links - names

    def add_blobs(self, keys: Iterable[InodeKey]) -> None:
        self._blobs.update(keys)

    def looking(self) -> None:
        """A look at the tree begins: its link counts hold for all but those that are touched from now on."""
        self._touched.clear()

    def hide(self, files: Sequence[Found], look: Callable[[str], Found | None]) -> None:
        """`files`, found since `looking`, are about to be linked in a thread, which nobody shall see. One draft's at a
        time."""
        for found in files:
            seen = look(found.path) if found.key in self._touched else found
            if found.kind is Kind.FILE and seen is not None and seen.key == found.key:
                self._hidden.add(found.key)
                if found.key not in self._names:
                    self._names[found.key] = seen.links - (found.key in self._blobs)

    def unhide(self) -> None:
        """The end of `hide`, whatever came of it."""
        for key in self._hidden - self._linked.keys():
            self._names.pop(key, None)
        self._hidden.clear()

    def add(self, *drafts: Sealed) -> None:
        """The members of drafts that were just sealed, or of all those that an earlier mount left."""
        mine = Counter(key for sealed in drafts for key in sealed.keys)
        for sealed in drafts:
            for linked in sealed.journal.files:
                if linked.link and linked.key not in self._names:
                    links = os.stat(sealed.source(linked), follow_symlinks=False).st_nlink
                    self._names[linked.key] = links - mine[linked.key] - (linked.key in self._blobs)
        self._linked.update(mine)

    def settle(self, sealed: Sealed, blobs: Iterable[InodeKey]) -> None:
        """A draft is committed and its links are gone; `blobs`: which of its inodes are blobs now."""
        self._blobs.update(blobs)
        self._touched.update(sealed.keys)
        for key in sealed.keys:
            left = self._linked[key] - 1
            if left > 0:
                self._linked[key] = left
                continue
            self._linked.pop(key, None)
            if key not in self._hidden:
                self._names.pop(key, None)

    @property
    def blobs(self) -> list[InodeKey]:
        return list(self._blobs)

    def collected(self, key: InodeKey) -> None:
        """The inode is a blob no more: training may write it again, unless it is in a draft."""
        if key not in self._linked:
            self._blobs.discard(key)

    def created(self, key: InodeKey) -> None:
        """A new inode: whatever was known of an earlier one under its number does not hold."""
        self._blobs.discard(key)

    def names_changed(self, key: InodeKey, by: int) -> None:
        """The inode got (1) or lost (-1) a name in the working tree."""
        self._touched.add(key)
        if key in self._names:
            self._names[key] += by
