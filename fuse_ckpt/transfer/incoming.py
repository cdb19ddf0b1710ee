"""What lies in an object store, as something that can be pushed: an export of ours, or any files below a prefix."""

from __future__ import annotations

from collections.abc import Iterator

from blake3 import blake3

from fuse_ckpt.errors import Corrupt, NotFound, UsageError
from fuse_ckpt.model import Entry, Kind, Metadata, Origin, Shape
from fuse_ckpt.transfer import copying, described, lanes
from fuse_ckpt.transfer.names import MANIFEST, MARKER, Place
from fuse_ckpt.transfer.remote import Found, Remote
from fuse_ckpt.transfer.selection import is_inside, parents

_MODE = 0o644  # of files of which nobody has said any


class RemoteSource:
    """The files below `place`, or the one object there. Where our manifest is, it has the say: names, digests, links.

    Errors: NotFound (nothing is there), Corrupt (the manifest is damaged, or a file of it is missing), UsageError (an
    export that is not finished; a name that no directory could hold), StorageFailed.
    """

    def __init__(self, remote: Remote, place: Place) -> None:
        self._remote = remote
        self._place = place
        self._stop = lanes.Stop()
        self.shape = Shape.DIRECTORY
        self.label = place.prefix.rpartition("/")[2]
        self.said: Metadata | None = None
        self.failure: str | None = None
        self.origin = Origin(provider=remote.connection.name, path=str(place))
        self._found: dict[str, Found] = {}  # by the entry's path
        there = remote.list(place.prefix, first=True)
        if place.key(MANIFEST) in there:
            self._read_manifest(there)
        elif place.key(MARKER) in there:
            raise UsageError(f"{place} is an export that was not finished: finish it first, by the same export again.")
        else:
            self._read_listing(there)

    @property
    def identity(self) -> str:
        """What a push that was interrupted is known by."""
        return f"storage {self._remote.connection.name} {self._place}"

    def shares(self, entry: Entry, target: int) -> bool:
        """Bytes from elsewhere need room."""
        return False

    def read_into(self, entry: Entry, target: int, advance: copying.Advance) -> str:
        """Write the object into the empty file `target`; its BLAKE3-256. Errors: StorageFailed, OSError."""
        hasher = blake3()
        at = 0
        for part in self._remote.read(self._found[entry.path], self._stop):
            hasher.update(part)
            copying.write_at(target, part, at)
            advance(len(part))
            at += len(part)
        return hasher.hexdigest()

    def _read_manifest(self, there: dict[str, Found]) -> None:
        what = f"{self._place}/{MANIFEST}"
        data = self._remote.get(self._place.key(MANIFEST), described.LIMIT)
        export = described.understood(data or b"", what)
        head = export.manifest.checkpoint
        self.shape, self.said, self.created_ns = head.shape, head.metadata, head.created_ns
        self.failure = None if head.promoted else head.failure
        self.entries = list(export.manifest.entries)
        for entry in self.entries:
            if entry.kind is not Kind.FILE:
                continue
            found = there.get(self._place.key(described.key_of(entry, export)))
            if found is None or found.size != entry.size:
                raise Corrupt(f"{what} names {entry.path}, which is missing there or has another size.")
            self._found[entry.path] = found

    def _read_listing(self, there: dict[str, Found]) -> None:
        one = self._remote.head(self._place.prefix) if not there and self._place.prefix else None
        if one is not None:
            self.shape = Shape.FLAT
            self._found = {self._place.prefix.rpartition("/")[2]: one}
        else:
            self._found = dict(self._below(there))
        if not self._found:
            raise NotFound(f"There is nothing at {self._place}: see what the object store has there.")
        self.entries = [
            Entry(path, Kind.FILE, _MODE, found.modified_ns, size=found.size)
            for path, found in sorted(self._found.items())
        ]
        self.created_ns = max(found.modified_ns for found in self._found.values())

    def _below(self, there: dict[str, Found]) -> Iterator[tuple[str, Found]]:
        start = len(self._place.prefix) + 1 if self._place.prefix else 0
        paths = {found.key[start:]: found for found in there.values()}
        above = {parent for path in paths for parent in parents(path)}
        for path, found in paths.items():
            if not is_inside(path):
                raise UsageError(f"{found.key!r} is no name that a directory could hold: push what is below it alone.")
            if path in above and found.size == 0:
                continue  # what some tools put where they think of a directory
            yield path, found
