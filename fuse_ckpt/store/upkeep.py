"""Clearing away what a crash left behind."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
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
    with gc, locks.exclusive(layout.lock("publish")), ExitStack() as marking:
        _empty(layout.tmp, before=float("inf"), files=False)  # whole trees of jobs; who marks does not wait for that
        marking.enter_context(locks.exclusive(layout.lock("manifests")))
        _empty(layout.tmp, before=float("inf"))
        empty, orphans = index.read(lambda records: (records.newest_id() is None, _orphans(layout.manifests, records)))
        lost = [path for path in orphans if not _was_deleted(path)]  # else collect was cut off
        if len(lost) > (1 if empty else CRASHES_MAX):
            index.problems[f"{len(lost)} manifests have no record in the index: nothing was removed."] = None
            return
        for path in orphans:
            path.unlink(missing_ok=True)
    for name in os.listdir(layout.blobs):  # a few at a time: somebody may be waiting to commit
        gc = locks.try_exclusive(layout.lock("gc"))
        if gc is None:
            return
        with gc, locks.exclusive(layout.lock("publish")):
            _remove_blobs(layout.blobs / name, index)
    index.renew()


def _orphans(manifests: Path, records: Records) -> list[Path]:
    """The files that no record names. Of 100,000 each is looked at: no path is made of those that stay."""
    known = records.id_keys()
    with os.scandir(manifests) as entries:
        strangers = [entry.name for entry in entries if _id_key(entry.name) not in known]
    return [manifests / name for name in strangers if not records.has_id(name.removesuffix(".json"))]


def _id_key(name: str) -> bytes | None:
    """The id in the name of a manifest's file, as bytes."""
    try:
        return bytes.fromhex(name.removesuffix(".json").replace("-", ""))
    except ValueError:
        return None


def _remove_blobs(fan_out: Path, index: Index) -> None:
    """Remove those of one directory that no manifest names."""
    names = os.listdir(fan_out)

    def strangers(records: Records) -> list[str]:
        return [name for name in names if not (DIGEST.fullmatch(name) and records.has_blob(name))]

    for name in index.read(strangers) if names else ():
        (fan_out / name).unlink(missing_ok=True)


def _was_deleted(path: Path) -> bool:
    try:
        return manifest_from_json(path.read_bytes(), path.name).checkpoint.state is State.DELETED
    except (OSError, CorruptRecord):
        return False


def _files(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield Path(entry.path)


def _empty(directory: Path, before: float, *, files: bool = True) -> None:
    """Remove what has not changed since `before` (seconds since the epoch); without `files`, directories alone."""
    for path in _files(directory):
        try:
            if path.lstat().st_mtime >= before:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif files:
                path.unlink()
        except FileNotFoundError:
            continue  # its maker finished it
