"""Which inodes of the working tree may never be written again, and how many of an inode's links training can see."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from fuse_ckpt.model import InodeKey
from fuse_ckpt.staging.journal import Sealed


class SealedInodes:
    """The blobs and the members of sealed drafts among the inodes of one working tree."""

    def __init__(self) -> None:
        self._blobs: set[InodeKey] = set()
        self._linked: Counter[InodeKey] = Counter()  # links in pending/
        # While a draft is committed its links come and go in a thread: what training sees is counted instead.
        self._names: dict[InodeKey, int] = {}

    def __contains__(self, key: InodeKey) -> bool:
        """Whether the inode belongs to a sealed draft or is a blob: nobody may ever write it again."""
        return key in self._blobs or key in self._linked

    def hidden_links(self, key: InodeKey, links: int) -> int:
        """How many of the inode's `links` (st_nlink) are the store's own."""
        names = self._names.get(key)
        return int(key in self._blobs) if names is None else links - names

    def add_blobs(self, keys: Iterable[InodeKey]) -> None:
        self._blobs.update(keys)

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
        self._linked.subtract(sealed.keys)
        for key in set(sealed.keys):
            if self._linked[key] <= 0:
                del self._linked[key]
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
        if key in self._names:
            self._names[key] += by
