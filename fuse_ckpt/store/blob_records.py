"""The tables that say which blobs count, how often each is named, and which inodes of working trees they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from uuid import UUID

from msgspec.structs import replace

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import InodeKey

from .tables import INODE, Blob, Garbage, Table, Tables, Totals, id_of

ID = 16  # bytes of a checkpoint's key
_TOTALS = b"blobs"


class BlobRecords(Tables):
    """Blobs and sealed inodes, inside one transaction."""

    def has_blob(self, digest: str) -> bool:
        """Whether a manifest names the digest; also where its record is damaged."""
        return self._row(Table.BLOBS, bytes.fromhex(digest)) is not None

    def digests(self) -> set[str]:
        """Every digest that a manifest names."""
        return {key.hex() for key in self._keys(Table.BLOBS, b"")}

    def references(self, digests: Iterable[str]) -> dict[str, int]:
        """How many manifests name each of the digests; those that none names, and damaged ones, are left out."""
        found = {digest: self._blob(bytes.fromhex(digest)) for digest in digests}
        return {digest: blob.refs for digest, blob in found.items() if blob is not None}

    def totals(self) -> Totals:
        """The running sums; counted anew where there are none, or damaged ones."""
        try:
            known = self._get(Table.TOTALS, _TOTALS, Totals)
        except CorruptRecord as error:
            self._problems[str(error)] = None
            known = None
        if known is not None:
            return known
        sizes = [blob.size for blob in self._scan(Table.BLOBS, b"", Blob)]
        return Totals(len(sizes), sum(sizes))

    def digest_of(self, inode: InodeKey) -> str | None:
        """The digest that was recorded for an inode. Whether its blob still is that inode only the disk can tell."""
        found = self._get(Table.INODES, INODE.pack(inode.ino), bytes)
        return None if found is None else found.hex()

    def seal_inodes(self, sealed: Iterable[tuple[InodeKey, str]]) -> None:
        """These inodes are the blobs of these digests from now on."""
        for inode, digest in sealed:
            self._put(Table.INODES, INODE.pack(inode.ino), bytes.fromhex(digest))

    # counting

    def claim(self, sizes: Mapping[str, int]) -> None:
        """One more manifest names each of these digests (digest → size)."""
        totals = self.totals()
        new = {digest: size for digest, size in sizes.items() if not self.has_blob(digest)}
        for digest, size in sizes.items():
            key = bytes.fromhex(digest)
            blob = self._blob(key)  # damaged: a count that is too low, which `collect` counts again
            self._put(Table.BLOBS, key, Blob(blob.refs + 1 if blob else 1, size))
        self._count(totals, len(new), sum(new.values()))

    def disclaim(self, sizes: Mapping[str, int], inodes: Mapping[str, int]) -> None:
        """One manifest less names each of these digests; those that none names any more become garbage.

        `inodes`: the number of each blob's inode, as far as there is one.
        """
        totals = self.totals()
        gone: dict[str, int] = {}
        for digest, size in sizes.items():
            key = bytes.fromhex(digest)
            blob = self._blob(key)
            if blob is not None and blob.refs > 1:
                self._put(Table.BLOBS, key, replace(blob, refs=blob.refs - 1))
            else:
                gone[digest] = size
                self._delete(Table.BLOBS, key)
                self._put(Table.GARBAGE, key, Garbage(size, inodes.get(digest, 0)))
        self._count(totals, -len(gone), -sum(gone.values()))

    def restore_count(self, digest: str, blob: Blob) -> None:
        """A digest was called garbage by a count that was wrong: `blob` is right."""
        self._put(Table.BLOBS, bytes.fromhex(digest), blob)
        self._count(self.totals(), 1, blob.size)

    # of checkpoints that are elsewhere

    def mark_away(self, checkpoint: str) -> None:
        self._put(Table.HELD, UUID(checkpoint).bytes, b"")

    def away(self) -> set[str]:
        """The ids of all checkpoints that are elsewhere."""
        return {id_of(key) for key in self._keys(Table.HELD, b"") if len(key) == ID}

    def held(self, checkpoint: str) -> set[str] | None:
        """The digests that a checkpoint which is elsewhere counts as its own; None for one that is here."""
        keys = [*self._keys(Table.HELD, UUID(checkpoint).bytes)]
        return {key[ID:].hex() for key in keys if len(key) > ID} if keys else None

    def hold_blobs(self, checkpoint: str, sizes: Mapping[str, int]) -> None:
        """These blobs (digest → size) are here, and count for a checkpoint that is elsewhere."""
        held = self.held(checkpoint) or set()
        new = {digest: size for digest, size in sizes.items() if digest not in held}
        self.claim(new)
        for digest in new:
            self._put(Table.HELD, UUID(checkpoint).bytes + bytes.fromhex(digest), b"")

    def drop_held(self, checkpoint: str) -> None:
        """It is elsewhere no more: it has gone, or all its blobs count as any other's do."""
        for key in [*self._keys(Table.HELD, UUID(checkpoint).bytes)]:
            self._delete(Table.HELD, key)

    # garbage

    def garbage(self, at_most: int | None = None) -> dict[str, Garbage]:
        """Digests that no manifest named when they were put here; some may be named again since."""
        items = self._pairs(Table.GARBAGE, self._items(Table.GARBAGE, b""), Garbage)
        return {key.hex(): found for key, found in islice(items, at_most)}

    def drop_garbage(self, gone: Mapping[str, Garbage], kept: Collection[str]) -> None:
        """These are dealt with: their files have gone, but for `kept`. Their inodes are sealed no more."""
        for digest, found in gone.items():
            key = bytes.fromhex(digest)
            inode = INODE.pack(found.ino)
            if digest not in kept:
                self._delete(Table.SCANS, key)
                if self._inode(inode) == key:
                    self._delete(Table.INODES, inode)
            self._delete(Table.GARBAGE, key)
        totals = self.totals()
        self._put(Table.TOTALS, _TOTALS, replace(totals, collections=totals.collections + 1))

    def _count(self, before: Totals, blobs: int, size: int) -> None:
        after = replace(before, blobs=max(0, before.blobs + blobs), bytes=max(0, before.bytes + size))
        self._put(Table.TOTALS, _TOTALS, after)

    def _blob(self, digest: bytes) -> Blob | None:
        try:
            return self._get(Table.BLOBS, digest, Blob)
        except CorruptRecord as error:
            self._problems[str(error)] = None
            return None

    def _inode(self, key: bytes) -> bytes | None:
        try:
            return self._get(Table.INODES, key, bytes)
        except CorruptRecord:
            return None
