"""The scans of a checkpoint's files, with what earlier scans have found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.contents.distributed import Records
from fuse_ckpt.contents.reading import BROKEN, Blobs, Unreadable, Window
from fuse_ckpt.contents.scanning import how_read, is_records, scan_file, scan_parts
from fuse_ckpt.model import SCAN_RULES, Entry, Kind, Scan

_Parts = list[tuple[int, int]]  # place and length of each


class ScannedFile(Struct, frozen=True):
    """A file of a checkpoint, and what loading it would import and call."""

    path: str
    digest: str
    scan: Scan
    fresh: bool  # it was scanned now: `Store.keep_scans` may keep it


def scan(entries: Iterable[Entry], blobs: Blobs, kept: Mapping[str, Scan]) -> Iterator[ScannedFile]:
    """Scan each file, or take the scan that was `kept` of its digest. Raises CorruptBlob, OSError."""
    files = sorted((entry for entry in entries if entry.kind is Kind.FILE), key=lambda entry: entry.path)
    parts = _parts_of_shards(files, blobs)
    for entry in files:
        records, places = parts.get(entry.path, ("", []))
        by = f"parts by {records}" if records else how_read(entry.path)
        before = kept.get(entry.digest)
        if before is not None and (before.rules, before.by) == (SCAN_RULES, by):
            yield ScannedFile(entry.path, entry.digest, before, fresh=False)
            continue
        with blobs(entry.digest) as file:
            window = Window.whole(file)
            found = scan_parts(window, places) if records else scan_file(window, entry.path)
        yield ScannedFile(entry.path, entry.digest, replace(found, by=by), fresh=True)


def _parts_of_shards(files: Iterable[Entry], blobs: Blobs) -> dict[str, tuple[str, _Parts]]:
    """For each file of a distributed checkpoint, the digest of its .metadata, and the parts that are loaded by it."""
    parts: dict[str, tuple[str, _Parts]] = {}
    for entry in files:
        if not is_records(entry.path):
            continue
        with blobs(entry.digest) as file:
            try:
                stored = Records(Window.whole(file), entry.path).stored.values()
            except (Unreadable, *BROKEN):
                continue  # its own scan tells
        for one in stored:
            parts.setdefault(one.path, (entry.digest, []))[1].append((one.at, one.length))
    return parts
