"""Clearing away what a crash left behind."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import State

from . import locks
from .codec import manifest_from_json
from .index import Index
from .layout import Layout
from .records import Records

STALE = 3600.0  # seconds; nobody takes so long to make a thing in tmp/
CRASHES_MAX = 8  # manifests without a record; each crash leaves at most one, so more of them mean a lost index
DIGEST = re.compile("[0-9a-f]{64}")


def recover(layout: Layout, index: Index) -> None:
    """Remove what no record names and nobody is about to name; see `Store.recover`."""
    gc = locks.try_exclusive(layout.lock("gc"))
    if gc is None:
        _empty(layout.tmp, before=time.time() - STALE)
        return
    with gc, locks.exclusive(layout.lock("publish")):
        _empty(layout.tmp, before=float("inf"))
        known = index.read(lambda records: set(records.ids()))
        orphans = [path for path in _files(layout.manifests) if path.stem not in known]
        lost = [path for path in orphans if not _was_deleted(path)]  # else collect was cut off
        if len(lost) > (CRASHES_MAX if known else 1):
            index.problems[f"{len(lost)} manifests have no record in the index: nothing was removed."] = None
            return
        for path in orphans:
            path.unlink(missing_ok=True)
    for fan_out in list(layout.blobs.iterdir()):  # a few at a time: somebody may be waiting to commit
        gc = locks.try_exclusive(layout.lock("gc"))
        if gc is None:
            return
        with gc, locks.exclusive(layout.lock("publish")):
            _remove_blobs(fan_out, index)


def _remove_blobs(fan_out: Path, index: Index) -> None:
    """Remove those of one directory that no manifest names."""
    paths = list(_files(fan_out))

    def named(records: Records) -> set[str]:
        return {path.name for path in paths if DIGEST.fullmatch(path.name) and records.has_blob(path.name)}

    known = index.read(named) if paths else set()
    for path in paths:
        if path.name not in known:
            path.unlink(missing_ok=True)


def _was_deleted(path: Path) -> bool:
    try:
        return manifest_from_json(path.read_bytes(), path.name).checkpoint.state is State.DELETED
    except (OSError, CorruptRecord):
        return False


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
