"""Index against blobs against manifests against working trees, both ways. No blob's bytes are read: `verify` does."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Checkpoint, InodeKey, Manifest, State

from .collection import FEW
from .index import Index
from .layout import Layout
from .rebuilding import missing_blob, read_manifest, rebuild, refuse_while_served
from .records import Records
from .store import Store

_PRIVATE = 0o077  # permissions that nobody but the owner has on the store
_JOURNAL = "journal.json"


class Ailment(Struct, frozen=True):
    """One thing that is amiss. `cure`: what `mend` would do about it; None: a person must decide."""

    what: str
    cure: str | None = None


_REBUILD = "the index is built anew from the manifests"
_CLEAR = "it is removed: a crash left it"


def examine(root: Path) -> list[Ailment]:
    """All that is amiss with the store at `root`. Changes nothing. Errors: StoreUnusable, OSError."""
    try:
        with Store.open(root, create=False) as store:
            return [*_private(store.layout), *_index(store), *_drafts(store.layout)]
    except CorruptRecord as error:
        return [Ailment(str(error), _REBUILD)]


def mend(root: Path) -> list[Ailment]:
    """Mend what can be mended; returns what is amiss then. Errors: Busy where a job is served and the index is to be
    built anew, StoreUnusable, OSError."""
    found = examine(root)
    layout = Layout(Path(os.path.abspath(root)))
    if any(one.cure == _REBUILD for one in found):
        refuse_while_served(layout)
        rebuild(root)
    for path in _open_to_others(layout):
        path.chmod(path.stat().st_mode & ~_PRIVATE)
    for path in list(_torn_drafts(layout)):
        if _is_needless(path):  # asked of each when its turn comes: two may have the last links of one file
            shutil.rmtree(path)
    with Store.open(root, create=False) as store:
        store.recover()
    return examine(root)


# -- the index --------------------------------------------------------------------------------------------------------


def _index(store: Store) -> Iterator[Ailment]:
    layout, index = store.layout, store.index
    yield from (Ailment(sentence, _REBUILD) for sentence in index.read(Records.damage))
    ids = set(index.read(lambda records: list(records.ids())))
    files = {path.stem for path in layout.manifests.iterdir()}
    yield from _files_without_record(layout, files - ids)
    elsewhere = {head.id for head in store.checkpoints(states=set(State)) if head.remote is not None}
    for one in sorted(ids - files - elsewhere):
        yield Ailment(f"Checkpoint {one} has no file in manifests/: the index alone knows it.", _REBUILD)
    named = index.read(Records.digests)
    yield from _checkpoints(store, named)
    yield from _blobs(layout, index, named)


def _files_without_record(layout: Layout, strays: set[str]) -> Iterator[Ailment]:
    """A crash between the two leaves one, whose blobs may have gone; a lost index leaves all."""
    for one in sorted(strays):
        try:
            manifest = read_manifest(layout.manifest(one))
            lacking = missing_blob(layout, manifest)
        except CorruptRecord as error:
            yield Ailment(f"{error} The index has no record of it.")
            continue
        if manifest.checkpoint.state is State.DELETED and len(strays) <= FEW:
            yield Ailment(f"manifests/{one}.json describes a checkpoint that was collected.", _CLEAR)
            continue
        yield Ailment(
            f"manifests/{one}.json describes a checkpoint that the index does not know.",
            _REBUILD if lacking is None else None,
        )


def _checkpoints(store: Store, named: set[str]) -> Iterator[Ailment]:
    for head in store.checkpoints(states=set(State) - {State.DELETED}):
        who = f"{head.id} ({head.place})"
        try:
            manifest = store.manifest(head.id)
        except CorruptRecord as error:
            yield Ailment(str(error), _REBUILD)
            continue
        lacking = missing_blob(store.layout, manifest) if head.remote is None else None
        if lacking is not None and head.state is State.AVAILABLE:
            yield Ailment(f"{who} is available, but {lacking}.", _REBUILD)
        if head.remote is None and (unnamed := _digests(manifest) - named):
            yield Ailment(f"{who} names {len(unnamed)} blobs that the index does not count.", _REBUILD)
        if not _is_found_by_name(store, head):
            yield Ailment(f"{who} is not found by its name.", _REBUILD)


def _is_found_by_name(store: Store, head: Checkpoint) -> bool:
    try:
        found = store.index.read(lambda records: records.version(head.job, head.name, head.ordinal))
    except CorruptRecord:
        return False
    return found is not None and found.id == head.id


def _digests(manifest: Manifest) -> set[str]:
    return {entry.digest for entry in (*manifest.entries, *manifest.companions) if entry.digest}


def _blobs(layout: Layout, index: Index, named: set[str]) -> Iterator[Ailment]:
    """The other way round: blobs that nobody names, and blobs with a name in a working tree that are not sealed."""
    for path in layout.blobs.glob("*/*"):
        if path.name not in named:
            yield Ailment(f"The blob {path.name} is named by no checkpoint.", _CLEAR)
            continue
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            yield Ailment(f"The blob {path.name} is no regular file.")
        elif status.st_nlink > 1 and _sealed_as(index, status) != path.name:
            yield Ailment(f"The blob {path.name} has a name in a working tree and is not sealed there.", _REBUILD)


def _sealed_as(index: Index, status: os.stat_result) -> str | None:
    key = InodeKey(status.st_dev, status.st_ino)
    try:
        return index.read(lambda records: records.digest_of(key))
    except CorruptRecord:
        return None


# -- what lies beside it ----------------------------------------------------------------------------------------------


def _private(layout: Layout) -> Iterator[Ailment]:
    for path in _open_to_others(layout):
        yield Ailment(f"{path} can be entered by others than its owner.", "it is closed to them (mode 0700)")


def _open_to_others(layout: Layout) -> list[Path]:
    return [path for path in (layout.root, *layout.directories) if path.stat().st_mode & _PRIVATE]


def _drafts(layout: Layout) -> Iterator[Ailment]:
    """Sealed drafts whose journal cannot be read: a power cut tore it before its commit had begun."""
    for path in _torn_drafts(layout):
        if _is_needless(path):
            yield Ailment(f"{path} is a sealed draft whose journal is torn; all its files are elsewhere.", _CLEAR)
        else:
            yield Ailment(f"{path} is a sealed draft whose journal is torn; its files are nowhere else: look at them.")


def _torn_drafts(layout: Layout) -> Iterator[Path]:
    for path in layout.jobs.glob("*/pending/*"):
        if not path.is_dir():
            continue
        try:
            content = json.loads((path / _JOURNAL).read_bytes())  # not msgspec: a name may be no UTF-8
        except FileNotFoundError:
            continue  # a seal that never happened; the next mount removes it
        except ValueError:
            yield path
            continue
        if not isinstance(content, dict):
            yield path


def _is_needless(draft: Path) -> bool:
    """Whether all files of a torn draft have names outside it; a daemon may remove it meanwhile."""
    try:
        found = [one.lstat() for one in draft.iterdir() if one.name[0] in "mc"]
    except FileNotFoundError:
        return False
    here = Counter(one.st_ino for one in found)
    return all(one.st_nlink > here[one.st_ino] for one in found)
