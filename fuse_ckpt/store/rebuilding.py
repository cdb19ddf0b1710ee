"""A new index, from the manifests that each commit leaves beside the blobs, and from what the old one still says.

Where a record of the old index is whole it has the say (a state, a pin, a tag change there first); where it is not, the
manifest's file has. What a checkpoint names must be there: one that lacks a blob is recorded as failed, never as
available.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import Busy, CorruptRecord
from fuse_ckpt.model import InodeKey, Job, Manifest, State

from . import locks
from .codec import manifest_from_json, manifest_to_json
from .durable import fsync_directory, replace_file
from .format import prepare
from .index import DATA, Index
from .layout import Layout
from .records import Records, blob_sizes
from .salvage import Salvaged, salvage
from .validation import fault_of

BATCH = 1000  # checkpoints a transaction


class Rebuilt(Struct, frozen=True):
    """What a new index holds. `kept`: the old one, if there was any; `problems`: a sentence for each thing amiss."""

    checkpoints: int
    runs: int
    kept: Path | None
    problems: tuple[str, ...] = ()


def rebuild(root: Path) -> Rebuilt:
    """Build the index of the store at `root` anew and keep the old one aside; all or nothing.

    Errors: Busy where a daemon serves a job of the store, StoreUnusable, OSError.
    """
    layout = Layout(Path(os.path.abspath(root)))
    prepare(layout, create=False)
    with ExitStack() as held:
        refuse_while_served(layout)
        for name in ("gc", "publish", "manifests", "index"):
            held.enter_context(locks.exclusive(layout.lock(name)))
        refuse_while_served(layout)
        return _rebuild(layout)


def refuse_while_served(layout: Layout) -> None:
    """Raise Busy where a daemon serves a job."""
    for path in sorted(layout.locks.glob("job-*")):
        if locks.is_held(path):
            job, where = path.name.removeprefix("job-"), locks.read_note(path)
            raise Busy(f"Job {job} is mounted{f' at {where}' if where else ''}: umount it, then rebuild the index.")


def _rebuild(layout: Layout) -> Rebuilt:
    """With all locks held, so that nobody reads the old index or writes to it."""
    old = salvage(layout.index, layout.lock("salvage"))
    problems: list[str] = []
    manifests = sorted(_merged(layout, old, problems), key=lambda one: one.checkpoint.id)
    manifests = [_checked(layout, one, problems) for one in manifests if not _is_collected(layout, one)]
    fresh = layout.tmp / f"index-{time.time_ns()}"
    fresh.mkdir(0o700)
    index = Index(fresh, layout.lock("rebuild"))
    try:
        _fill(index, layout, old, manifests)
    finally:
        index.close()
    for one in manifests:
        _write_if_different(layout, one)
    kept = _put_in_place(layout, fresh / DATA)
    fresh.rmdir()
    if kept is not None and not old.whole:
        problems.append("The old index could not be read to its end: what only it knew (older runs) is lost.")
    return Rebuilt(len(manifests), len(old.runs), kept, tuple(problems))


def _merged(layout: Layout, old: Salvaged, problems: list[str]) -> Iterator[Manifest]:
    """Every manifest there is, from a file or from the old index, with the state that the old index gives it."""
    known = {}
    for checkpoint, manifest in old.manifests.items():
        fault = fault_of(manifest)
        if fault is None:
            known[checkpoint] = manifest
        else:
            problems.append(f"The index's manifest of {checkpoint} is not to be trusted: {fault}. It is not recorded.")
    for path in sorted(layout.manifests.iterdir()):
        try:
            found = read_manifest(path)
        except CorruptRecord as error:
            if path.stem not in known:
                problems.append(f"{error} It is not recorded.")
            continue
        known.setdefault(found.checkpoint.id, found)
    for checkpoint, manifest in known.items():
        yield replace(manifest, checkpoint=old.checkpoints.get(checkpoint, manifest.checkpoint))
    for checkpoint in sorted(old.checkpoints.keys() - known.keys()):
        problems.append(f"Checkpoint {checkpoint} has lost its manifest: what it was made of is not known any more.")


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file of manifests/. Errors: CorruptRecord."""
    try:
        manifest = manifest_from_json(path.read_bytes(), path.name)
    except OSError as error:
        raise CorruptRecord(f"The manifest {path.name} cannot be read: {error.strerror}.") from error
    fault = fault_of(manifest) or (None if manifest.checkpoint.id == path.stem else "it is another checkpoint's")
    if fault is not None:
        raise CorruptRecord(f"The manifest {path.name} is not to be trusted: {fault}.")
    return manifest


def _checked(layout: Layout, manifest: Manifest, problems: list[str]) -> Manifest:
    """The manifest; as a failed checkpoint's, where one of its blobs is not there with its size."""
    head = manifest.checkpoint
    lacking = missing_blob(layout, manifest) if head.remote is None else None
    if lacking is None or head.state not in (State.AVAILABLE, State.PENDING):
        return manifest
    problems.append(f"{head.id} ({head.place}) is failed now: {lacking}")
    return replace(manifest, checkpoint=replace(head, state=State.FAILED, failure=lacking))


def _is_collected(layout: Layout, manifest: Manifest) -> bool:
    """Whether a collection was cut off before the manifest's file went; recover removes that then."""
    return manifest.checkpoint.state is State.DELETED and missing_blob(layout, manifest) is not None


def missing_blob(layout: Layout, manifest: Manifest) -> str | None:
    """A sentence that names the first file whose blob is missing or has another size; None: all are there."""
    for entry in (*manifest.entries, *manifest.companions):
        if not entry.digest:
            continue
        try:
            size = os.stat(layout.blob(entry.digest), follow_symlinks=False).st_size
        except FileNotFoundError:
            return f"the bytes of {entry.path!r} are missing from the store"
        if size != entry.size:
            return f"the stored bytes of {entry.path!r} are {size}, not {entry.size}"
    return None


def _fill(index: Index, layout: Layout, old: Salvaged, manifests: Sequence[Manifest]) -> None:
    index.write(lambda records: _put_jobs(layout, old, records))
    rest = iter(manifests)
    while batch := list(islice(rest, BATCH)):
        sealed = [_sealed(layout, one) for one in batch]

        def put(records: Records, batch: Sequence[Manifest] = batch, sealed: Sequence[Inodes] = sealed) -> None:
            for manifest, inodes in zip(batch, sealed, strict=True):
                _add(records, manifest, inodes)

        index.write(put)
    index.write(lambda records: _put_rest(old, records))


def _put_jobs(layout: Layout, old: Salvaged, records: Records) -> None:
    jobs = dict(old.jobs)
    for path in layout.jobs.iterdir():
        jobs.setdefault(path.name, Job(path.name, path.stat().st_mtime_ns))
    for job in jobs.values():
        records.put_job(job)
    for run in old.runs:
        records.put_run(run)


def _put_rest(old: Salvaged, records: Records) -> None:
    for remnant in old.remnants:
        records.put_remnant(remnant)
    for one in old.kept:
        records.put_kept(one)


def _add(records: Records, manifest: Manifest, inodes: Inodes) -> None:
    records.add(manifest, inodes)
    if manifest.checkpoint.remote is not None:
        here = {digest for _, digest in inodes}
        records.hold_blobs(
            manifest.checkpoint.id, {one: size for one, size in blob_sizes(manifest).items() if one in here}
        )
    if manifest.checkpoint.state is not State.DELETED:  # else its tags are others' by now
        for tag in manifest.checkpoint.tags:
            records.put_tag(tag, manifest.checkpoint.id)


Inodes = list[tuple[InodeKey, str]]


def _sealed(layout: Layout, manifest: Manifest) -> Inodes:
    """The inodes of the manifest's blobs: whichever of them has a name in a working tree must never be written."""
    found: Inodes = []
    for digest in blob_sizes(manifest):
        try:
            status = os.stat(layout.blob(digest), follow_symlinks=False)
        except FileNotFoundError:
            continue
        found.append((InodeKey(status.st_dev, status.st_ino), digest))
    return found


def _write_if_different(layout: Layout, manifest: Manifest) -> None:
    path, data = layout.manifest(manifest.checkpoint.id), manifest_to_json(manifest)
    if not path.exists() or path.read_bytes() != data:
        replace_file(path, data, layout.tmp)


def _put_in_place(layout: Layout, fresh: Path) -> Path | None:
    """Let the new file take the old one's name in one step; returns the name that the old one has now."""
    data = layout.index / DATA
    kept = layout.index / f"replaced-{time.time_ns()}.mdb"
    there = data.exists()
    if there:
        os.link(data, kept)
    os.rename(fresh, data)
    fsync_directory(layout.index)
    return kept if there else None
