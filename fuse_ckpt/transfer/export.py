"""Write a checkpoint to an object store: its files as plain objects, then a manifest that says that all are there.

Bytes leave only if they have the digest that they were stored under, and at the end every object is read back and
compared with it: the one proof that holds for every store there is. An export that was cut off is gone on with: an
object that is there with the right size is read, and sent again only if its bytes are wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from blake3 import blake3
from msgspec import Struct

from fuse_ckpt.errors import Corrupt, CorruptBlob, FuseCkptError, StorageFailed, UsageError
from fuse_ckpt.model import Checkpoint, Entry, Kind, Manifest
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import copying, described, lanes, planning, selection
from fuse_ckpt.transfer.names import MANIFEST, MARKER, Place
from fuse_ckpt.transfer.planning import Planned
from fuse_ckpt.transfer.remote import Found, Remote

LARGE = 16 << 20  # bytes; such a file is sent in parts, and alone: all the parts at once are its own
SMALL_LANES = 8  # files below LARGE at once


class Exported(Struct, frozen=True):
    """What is at the destination now: files, their bytes; how many of them were sent, and were there already.

    `left_out`: the symlinks that are in the manifest alone. `read_back`: every byte was read and compared.
    """

    place: Place
    files: int
    size: int
    sent: int
    left_out: tuple[str, ...]
    read_back: bool


def export(
    store: Store,
    checkpoint: Checkpoint,
    remote: Remote,
    place: Place,
    *,
    include: Sequence[str] = (),
    force: bool = False,
    read_back: bool = True,
    progress: copying.Progress | None = None,
) -> Exported:
    """Write the checkpoint's files (those that fit one of the globs `include`, if there are any) below `place`.

    A symlink to a file of the checkpoint becomes a copy of it; others are named in the manifest alone. `force`
    replaces objects of the same names in a destination that holds something else. Without `read_back` the sizes alone
    of what was sent are compared. Errors: UsageError (the destination holds something else), NotFound (no file fits),
    UnknownCheckpoint, Corrupt, CorruptBlob, StorageFailed.
    """
    remote.refuse_ours(place.prefix, store.layout.root, "--destination-path")
    with store.lease(checkpoint.id):
        manifest = store.manifest(checkpoint.id)
        entries = selection.chosen(manifest.entries, include)
        plan = planning.plan(Manifest(manifest.checkpoint, tuple(entries)), include, read_back)
        run = _Run(store, remote, place, plan, progress, read_back)
        sent = run.complete(force)
    files = [one.file for one in run.objects]
    left_out = tuple(e.path for e in entries if e.kind is Kind.SYMLINK and e.path not in plan.copies)
    return Exported(place, len(files), selection.total_size(files), sent, left_out, read_back)


def _counter(size: int, passes: int, progress: copying.Progress | None) -> copying.Advance:
    """As `copying.counter`, of bytes that are all handled `passes` times: a person sees them once."""
    if progress is None:
        return copying.ignore
    return copying.counter(size * passes, lambda done, total: progress(done // passes, total // passes))


class _Run:
    """One export under way."""

    def __init__(
        self,
        store: Store,
        remote: Remote,
        place: Place,
        plan: described.Export,
        progress: copying.Progress | None,
        read_back: bool,
    ) -> None:
        self._store = store
        self._remote = remote
        self._place = place
        self._plan = plan
        self._read_back = read_back
        self._stop = lanes.Stop()
        self._id = plan.manifest.checkpoint.id
        self.objects = planning.objects(plan, place)
        self._advance = _counter(sum(one.file.size for one in self.objects), 2 if read_back else 1, progress)

    def complete(self, force: bool) -> int:
        """Bring the destination to hold just what the plan says; the number of objects that had to be sent."""
        there = self._remote.list(self._place.prefix, first=True)
        whole = self._look_at(there, force)
        kept = [one for one in self.objects if one.key in there and there[one.key].size == one.file.size]
        if not whole:
            self._begin(there, force)
        right = self._right_ones(kept, there)
        missing = [one for one in self.objects if one.key not in right]
        if whole and missing:
            self._begin(there, force)
        self._each(missing, self._send)
        if missing or not whole:
            self._check(missing)
            self._end()
        elif self._key(MARKER) in there:
            self._remote.delete([self._key(MARKER)])
        return len(missing)

    def _key(self, name: str) -> str:
        return self._place.key(name)

    def _look_at(self, there: dict[str, Found], force: bool) -> bool:
        """Whether the destination holds this very export already. Errors: UsageError, where it holds another thing."""
        strange = there.keys() - {one.key for one in self.objects} - {self._key(MANIFEST), self._key(MARKER)}
        manifest = self._manifest_there(there)
        if manifest is not None and manifest.manifest.checkpoint.id == self._id and not strange:
            return manifest.manifest.entries == self._plan.manifest.entries
        if force:
            return False
        if self._key(MANIFEST) in there:
            held = f"checkpoint {manifest.manifest.checkpoint.id}" if manifest is not None else "a damaged manifest"
        elif self._key(MARKER) in there:
            held = self._marked(strange)
        else:
            held = f"other objects ({min(there)})" if there else ""
        if held:
            raise UsageError(
                f"{self._place} holds {held} already: choose another --destination-path, or --force to replace what "
                "has the same names."
            )
        return False

    def _marked(self, strange: set[str]) -> str:
        """What a destination with a marker holds, in words; "" where it is this export, under way."""
        held = described.marked_id(self._remote.get(self._key(MARKER), described.LIMIT))
        if held != self._id:
            return f"a half-made export of {held or 'something'}"
        return f"other objects ({min(strange)})" if strange else ""

    def _manifest_there(self, there: dict[str, Found]) -> described.Export | None:
        if self._key(MANIFEST) not in there:
            return None
        data = self._remote.get(self._key(MANIFEST), described.LIMIT)
        try:
            return described.understood(data or b"", f"{self._place}/{MANIFEST}")
        except Corrupt:
            return None

    def _begin(self, there: dict[str, Found], force: bool) -> None:
        """From here on the destination is not whole: no manifest, but our marker."""
        if self._key(MANIFEST) in there:
            self._remote.delete([self._key(MANIFEST)])
        marker = described.marked(self._id)
        if force:
            self._remote.put(self._key(MARKER), marker)
        elif not self._remote.create(self._key(MARKER), marker):
            raise UsageError(f"Another export to {self._place} began just now: choose another --destination-path.")

    def _right_ones(self, kept: Sequence[Planned], there: dict[str, Found]) -> set[str]:
        """The keys of those objects whose bytes are right."""
        right: set[str] = set()

        def look(one: Planned) -> None:
            if self._digest_of(there[one.key]) == one.file.digest:
                right.add(one.key)
                if self._read_back:
                    self._advance(one.file.size)  # it need not be sent

        self._each(kept, look)
        return right

    def _each(self, objects: Sequence[Planned], work: Callable[[Planned], None]) -> None:
        large = [one for one in objects if one.file.size >= LARGE]
        small = [one for one in objects if one.file.size < LARGE]
        lanes.run(1, large, work, self._stop)
        lanes.run(min(SMALL_LANES, len(small)), small, work, self._stop)

    def _send(self, one: Planned) -> None:
        self._remote.upload(one.key, one.file.size, lambda count: self._bytes_of(one.file, count))

    def _bytes_of(self, file: Entry, count: int) -> Iterator[bytes]:
        """The blob's bytes, `count` at a time. Raises CorruptBlob before the last ones where they are not right."""
        hasher = blake3()
        held = b""
        for data in _read_blob(self._store, file, count):
            self._stop.check()
            if held:
                yield held
                self._advance(len(held))
            hasher.update(data)
            held = data
        if hasher.hexdigest() != file.digest:
            raise _damaged(file, "damaged")
        yield held
        self._advance(len(held))

    def _check(self, sent: Sequence[Planned]) -> None:
        """See that what was sent is there. Errors: StorageFailed."""
        there = self._remote.list(self._place.prefix)

        def look(one: Planned) -> None:
            found = there.get(one.key)
            right = found is not None and found.size == one.file.size
            if found is not None and right and self._read_back:
                right = self._digest_of(found) == one.file.digest
            if not right:
                raise StorageFailed(
                    f"{one.key} is not at {self._place} as it was sent: the export is not whole; run the command again."
                )

        self._each(sent, look)

    def _digest_of(self, found: Found) -> str:
        hasher = blake3()
        for part in self._remote.read(found, self._stop):
            hasher.update(part)
            self._advance(len(part))
        return hasher.hexdigest()

    def _end(self) -> None:
        """Everything is there: say so."""
        self._remote.settle(self._place.prefix, [one.key for one in self.objects])
        manifest = described.described(self._plan)
        self._remote.put(self._key(MANIFEST), manifest)
        if self._remote.get(self._key(MANIFEST), described.LIMIT) != manifest:
            raise StorageFailed(f"The manifest at {self._place} is not as it was sent: run the command again.")
        self._remote.settle(self._place.prefix, [self._key(MANIFEST)])
        self._remote.delete([self._key(MARKER)])


def _read_blob(store: Store, file: Entry, count: int) -> Iterator[bytes]:
    """The blob's bytes as they are, `count` at a time. No OSError of the disk is to pass for the object store's.

    Errors: CorruptBlob (missing, or of another size), FuseCkptError (the disk cannot read it).
    """
    try:
        with open(store.blob_path(file.digest), "rb", buffering=0) as blob:
            if os.fstat(blob.fileno()).st_size != file.size:
                raise _damaged(file, "damaged")
            while data := blob.read(count):
                yield data
    except FileNotFoundError:
        raise _damaged(file, "missing") from None
    except OSError as error:
        raise FuseCkptError(f"The stored bytes of {file.path} cannot be read: {error.strerror}.") from None


def _damaged(file: Entry, how: str) -> CorruptBlob:
    return CorruptBlob(
        f"The stored bytes of {file.path} are {how} (blob {file.digest}): the export is not whole; export another "
        "checkpoint, or restore the store's disk from a copy."
    )
