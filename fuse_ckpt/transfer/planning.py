"""What an export is going to be: which object has the bytes of which file, and what the manifest says of it. No I/O."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence

from msgspec import Struct

from fuse_ckpt.errors import UsageError
from fuse_ckpt.model import Entry, Kind, Manifest
from fuse_ckpt.transfer import names
from fuse_ckpt.transfer.described import Export, key_of
from fuse_ckpt.transfer.names import Place

HOPS_MAX = 40  # symlinks that lead to symlinks, as the kernel counts them


class Planned(Struct, frozen=True):
    """An object to be: its key, and the file whose bytes it has."""

    key: str
    file: Entry


def plan(manifest: Manifest, include: Sequence[str], read_back: bool) -> Export:
    """What the manifest of an export of these entries says."""
    keys = {entry.path: names.key_of(entry.path) for entry in manifest.entries}
    by_path = {entry.path: entry for entry in manifest.entries}
    return Export(
        manifest,
        keys={path: key for path, key in keys.items() if path != key},
        copies=tuple(entry.path for entry in manifest.entries if _is_copied(entry, by_path)),
        include=tuple(include),
        verified="read back" if read_back else "sizes",
    )


def objects(planned: Export, place: Place) -> list[Planned]:
    """The objects of an export at `place`. Errors: UsageError (a name is too long for an object)."""
    by_path = {entry.path: entry for entry in planned.manifest.entries}
    found = []
    for entry in planned.manifest.entries:
        file = _bytes_of(entry, by_path)
        if file is None:
            continue
        key = place.key(key_of(entry, planned))
        if len(key.encode()) > names.KEY_MAX:
            raise UsageError(f"{key[:40]}… is longer than an object's name may be ({names.KEY_MAX} bytes).")
        found.append(Planned(key, file))
    return found


def _is_copied(entry: Entry, by_path: Mapping[str, Entry]) -> bool:
    return entry.kind is Kind.SYMLINK and _bytes_of(entry, by_path) is not None


def _bytes_of(entry: Entry, by_path: Mapping[str, Entry]) -> Entry | None:
    """The file of the checkpoint that an entry is, or leads to; None where it is none."""
    for _ in range(HOPS_MAX):
        if entry.kind is Kind.FILE:
            return entry
        if entry.kind is Kind.DIRECTORY or entry.target.startswith("/"):
            return None
        leads_to = by_path.get(posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), entry.target)))
        if leads_to is None:
            return None
        entry = leads_to
    return None
