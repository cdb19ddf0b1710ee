"""What a mount does before the kernel sees anything: take up what an earlier one left behind."""

from __future__ import annotations

from pathlib import Path

from fuse_ckpt.staging.area import Area
from fuse_ckpt.staging.committer import is_committed
from fuse_ckpt.staging.journal import load_all
from fuse_ckpt.store import Store


def recover(area: Area, store: Store, job: str, pending: Path) -> None:
    """Learn which inodes of the working tree are blobs, queue the drafts in `pending`, and find what is uncommitted."""
    scans = {unit: area.tree.scan(unit) for unit in area.tree.units()}
    blobs = store.sealed_inodes(area.tree.linked_inodes())
    area.sealed.add_blobs(blobs)
    area.add_sealed(*load_all(pending, clean=True))
    store.forget_left(job, {unit.name for unit in scans})
    for unit, scan in scans.items():
        prefix = len(unit.prefix) + 1 if unit.prefix else 0
        digests = {found.path[prefix:]: blobs.get(found.key) for found in scan.files}
        if not scan.files or is_committed(store, job, unit, digests):
            continue
        if not store.was_collected(job, unit.name, [(f.path, f.size, f.mtime_ns) for f in scan.files]):
            area.found(unit, scan.files)
