"""The half of the store that doubts: reads bytes again, keeps what was found, and what scans of blobs have found."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import BinaryIO, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import CorruptBlob, CorruptRecord, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, Manifest, Scan, State

from . import verification
from .records import Records, blob_sizes
from .revisions import Revisions
from .verification import Damage, Progress

T = TypeVar("T")

DAMAGED = "damaged in the store: "  # how the failure of what `mark_damaged` marked begins
DAMAGE_SHOWN = 3  # files that a failure names
BATCH = 500  # manifests that are read in one transaction


class Findings(Struct, frozen=True):
    """What reading again has found."""

    checkpoints: tuple[str, ...]  # ids of those that were read
    damage: tuple[Damage, ...]
    records: tuple[str, ...]  # a sentence for each damaged record of the index
    files: int  # blobs, each once
    size: int  # bytes of them


class Checks(Revisions):
    """See `Store` for what all methods have in common."""

    def open_blob(self, digest: str) -> BinaryIO:
        """The bytes of a digest, unbuffered and not compared. Errors: CorruptBlob (it is not there), OSError."""
        path = self.layout.blob(digest)
        try:
            return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
        except FileNotFoundError:
            elsewhere = self._index.read(lambda records: bool(records.away()))
            hint = ", or is in an object store alone (checkpoint fetch brings it)" if elsewhere else ""
            raise CorruptBlob(
                f"Blob {digest} is missing in the store{hint}: checkpoint verify says which checkpoints need it."
            ) from None

    def examine(
        self,
        checkpoints: Iterable[str] | None = None,
        *,
        from_disk: bool = False,
        progress: Progress | None = None,
    ) -> Findings:
        """Read the blobs of `checkpoints` (ids; default: all that are not deleted, and every record too) again.

        `from_disk`: have the kernel forget what it holds of them, so that the disk itself is read. What is deleted
        meanwhile is left out. Errors: UnknownCheckpoint.
        """
        problems = dict.fromkeys(self._index.read(Records.damage) if checkpoints is None else ())
        every = self._index.read(lambda records: list(records.ids())) if checkpoints is None else checkpoints
        manifests = []
        for one in dict.fromkeys(every):
            try:
                manifests.append(_known(one, self._index.read(lambda records, wanted=one: records.manifest(wanted))))  # type: ignore[misc]
            except UnknownCheckpoint:
                if checkpoints is not None:
                    raise  # else it is deleted
            except CorruptRecord as error:
                problems[str(error)] = None
        recorded = self._index.read(Records.digests)
        found = verification.examine(self.layout, manifests, recorded, from_disk=from_disk, progress=progress)
        return self._findings(manifests, found, tuple(problems))

    def verify(self, checkpoints: Iterable[str] | None = None) -> list[str]:
        """What `examine` finds, in sentences. Errors: UnknownCheckpoint."""
        found = self.examine(checkpoints)
        return [*found.records, *map(str, found.damage)]

    def mark_damaged(self, checkpoint: str, damage: Sequence[Damage]) -> Checkpoint:
        """Make an available checkpoint `failed` for its damage: `latest` passes over it. Others stay as they are.

        Errors: UnknownCheckpoint.
        """
        files = ", ".join(repr(one.path) for one in damage[:DAMAGE_SHOWN])
        more = f" and {len(damage) - DAMAGE_SHOWN} more" if len(damage) > DAMAGE_SHOWN else ""

        def changed(head: Checkpoint) -> Checkpoint:
            if head.state is not State.AVAILABLE:
                return head
            return replace(head, state=State.FAILED, failure=f"{DAMAGED}{files}{more}", promoted=False)

        return self._change(checkpoint, changed)

    def mark_whole(self, checkpoint: str) -> Checkpoint:
        """Take back what `mark_damaged` did: its blobs are right again, since a later save has replaced them.

        Errors: UnknownCheckpoint.
        """

        def changed(head: Checkpoint) -> Checkpoint:
            if not is_marked_damaged(head):
                return head
            return replace(head, state=State.AVAILABLE, failure=None)

        return self._change(checkpoint, changed)

    def scans(self, digests: Iterable[str]) -> dict[str, Scan]:
        """What was kept of scans of blobs."""
        wanted = list(dict.fromkeys(digests))
        found = self._index.read(lambda records: {digest: _kept_scan(digest, records) for digest in wanted})
        return {digest: scan for digest, scan in found.items() if scan is not None}

    def keep_scans(self, scans: Mapping[str, Scan]) -> None:
        """Keep what scans of blobs have found, by digest."""

        def work(records: Records) -> None:
            for digest, scan in scans.items():
                records.put_scan(digest, scan)

        if scans:
            self._index.write(work)

    def _findings(self, manifests: Sequence[Manifest], found: Sequence[Damage], records: tuple[str, ...]) -> Findings:
        sizes = {digest: size for manifest in manifests for digest, size in blob_sizes(manifest).items()}
        ids = tuple(manifest.checkpoint.id for manifest in manifests)
        return Findings(ids, tuple(self._still(found)), records, len(sizes), sum(sizes.values()))

    def _still(self, found: Sequence[Damage]) -> list[Damage]:
        """The damage of checkpoints that are still there, and who else has it."""
        there = self._index.read(lambda records: {one.checkpoint for one in found if records.by_id(one.checkpoint)})
        kept = [one for one in found if one.checkpoint in there]
        holders = self._holders({one.digest for one in kept}) if kept else {}
        return [
            replace(one, shared=tuple(each for each in holders[one.digest] if each != one.checkpoint)) for one in kept
        ]

    def _holders(self, digests: Collection[str]) -> dict[str, list[str]]:
        """The ids of the checkpoints that hold each of the digests; all manifests are read, a few at a time."""
        holders: dict[str, list[str]] = {digest: [] for digest in digests}
        every = self._index.read(lambda records: list(records.ids()))
        for at in range(0, len(every), BATCH):
            some = every[at : at + BATCH]
            for manifest in self._index.read(lambda records, ids=some: list(_readable(ids, records))):  # type: ignore[misc]
                for digest in blob_sizes(manifest).keys() & holders.keys():
                    holders[digest].append(manifest.checkpoint.id)
        return holders

    def _change(self, checkpoint: str, change: Callable[[Checkpoint], Checkpoint]) -> Checkpoint:
        def work(records: Records) -> Checkpoint:
            manifest = _known(checkpoint, records.manifest(checkpoint))
            head = change(manifest.checkpoint)
            records.put_checkpoint(head)
            return head

        head = self._index.write(work)
        with suppress(OSError):  # the index has the say
            self._follow(checkpoint, "mark:manifest")
        return head


def is_marked_damaged(head: Checkpoint) -> bool:
    """Whether a checkpoint is failed because its bytes were found not to be what was stored."""
    return head.state is State.FAILED and (head.failure or "").startswith(DAMAGED)


def _known(reference: str, found: T | None) -> T:
    if found is None:
        raise UnknownCheckpoint(reference)
    return found


def _readable(checkpoints: Iterable[str], records: Records) -> Iterator[Manifest]:
    for one in checkpoints:
        with suppress(CorruptRecord):
            if manifest := records.manifest(one):
                yield manifest


def _kept_scan(digest: str, records: Records) -> Scan | None:
    try:
        return records.scan(digest)
    except CorruptRecord:
        return None  # it is made again
