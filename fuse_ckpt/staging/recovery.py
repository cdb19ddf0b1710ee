"""What a mount does before the kernel sees anything: take up what an earlier one left behind."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from fuse_ckpt.model import InodeKey, Kind, Manifest, Unit
from fuse_ckpt.staging.area import Area
from fuse_ckpt.staging.commit import is_in
from fuse_ckpt.staging.journal import load_all
from fuse_ckpt.staging.recent import PROVISIONAL, Recent
from fuse_ckpt.staging.worktree import Scan
from fuse_ckpt.store import Store, is_marked_damaged


def recover(area: Area, store: Store, job: str, pending: Path) -> None:
    """Learn which inodes of the working tree are blobs, queue the drafts in `pending`, and find what is uncommitted."""
    scans = {unit: area.tree.scan(unit) for unit in area.tree.units()}
    blobs = store.sealed_inodes(area.tree.linked_inodes())
    area.sealed.add_blobs(blobs)
    left = load_all(pending, clean=True)
    area.add_sealed(*left)
    store.forget_left(job, {unit.name for unit in scans})
    for unit, scan in scans.items():
        newest = store.newest(job, unit.name)
        if newest is not None:
            _remember(area, unit, scan, newest)
    for sealed in left:
        area.recent.sealed(sealed, None, None)
    for unit, scan in scans.items():
        newest = store.newest(job, unit.name, deleted=True)  # what was deleted is not to come back by itself
        digests = _digests(unit, scan, blobs, newest)
        if not scan.files or (newest is not None and is_in(newest, digests)):
            continue
        if not store.was_collected(job, unit.name, [(f.path, f.size, f.mtime_ns) for f in scan.files]):
            area.found(unit, scan.files)


def _digests(unit: Unit, scan: Scan, blobs: Mapping[InodeKey, str], newest: Manifest | None) -> dict[str, str | None]:
    """Path below the unit → digest of what lies there; None: it must be read.

    A file whose bytes were in the store before is no blob itself. It is what was committed as long as its size and
    mtime are; else a frozen model that lies in each of twenty checkpoints would be read twenty times at each mount.
    """
    prefix = len(unit.prefix) + 1 if unit.prefix else 0
    sound = newest is not None and not is_marked_damaged(newest.checkpoint)  # a good copy may mend the other
    entries = newest.entries if newest is not None and sound else ()
    seen = {(entry.path, entry.size, entry.mtime_ns): entry.digest for entry in entries if entry.kind is Kind.FILE}
    return {
        found.path[prefix:]: blobs.get(found.key) or seen.get((found.path[prefix:], found.size, found.mtime_ns))
        for found in scan.files
    }


def _remember(area: Area, unit: Unit, scan: Scan, newest: Manifest) -> None:
    """What was committed last may still be amended: by what comes now, if it is young, or by what came in time then.

    The clocks of two mounts have nothing in common, so here the wall clock tells.
    """
    head = newest.checkpoint
    if head.settled:
        return
    prefix = f"{unit.prefix}/" if unit.prefix else ""
    paths = {prefix + entry.path for entry in newest.entries if entry.kind is Kind.FILE}
    added = [found.mtime_ns for found in scan.files if found.path not in paths]
    end_ns = head.committed_ns + round(PROVISIONAL * 1e9)
    left = (end_ns - time.time_ns()) / 1e9
    if 0 < left <= PROVISIONAL or (added and max(added) <= end_ns):
        until = area.clock() + left if 0 < left <= PROVISIONAL else -math.inf
        area.recent.found(unit, Recent(head.draft, dict.fromkeys(paths), until))
