"""Clearing away what a crash left behind."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from . import locks
from .index import Index
from .layout import Layout

STALE = 3600.0  # seconds; nobody takes so long to make a thing in tmp/
CRASHES_MAX = 8  # manifests without a record; each crash leaves at most one, so more of them mean a lost index


def recover(layout: Layout, index: Index) -> None:
    """Remove what no record names and nobody is about to name; see `Store.recover`."""
    gc = locks.try_exclusive(layout.lock("gc"))
    if gc is None:
        _empty(layout.tmp, before=time.time() - STALE)
        return
    with gc, locks.exclusive(layout.lock("publish")):
        _empty(layout.tmp, before=float("inf"))
        known, digests = index.read(lambda records: (set(records.ids()), records.digests()))
        orphans = [path for path in _files(layout.manifests) if path.stem not in known]
        if len(orphans) > (CRASHES_MAX if known else 1):
            index.problems[f"{len(orphans)} manifests have no record in the index: nothing was removed."] = None
            return
        _remove_blobs(layout, digests)
        for path in orphans:
            path.unlink(missing_ok=True)


def _remove_blobs(layout: Layout, digests: set[str]) -> None:
    for fan_out in layout.blobs.iterdir():
        for path in _files(fan_out):
            if path.name not in digests:
                path.unlink(missing_ok=True)


def _files(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield Path(entry.path)


def _empty(directory: Path, before: float) -> None:
    """Remove what has not changed since `before` (seconds since the epoch)."""
    for path in _files(directory):
        try:
            if path.lstat().st_mtime >= before:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except FileNotFoundError:
            continue  # its maker finished it
