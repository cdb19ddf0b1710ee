"""From a sealed draft to a checkpoint: what is done in a worker thread, from the links in pending/ to the record."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import BinaryIO

from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt import metadata
from fuse_ckpt.errors import NotWritten
from fuse_ckpt.model import Checkpoint, Entry, InodeKey, Kind, Manifest, NewCheckpoint, State
from fuse_ckpt.staging import validate
from fuse_ckpt.staging.journal import Journal, Linked, Sealed
from fuse_ckpt.staging.units import goes_on
from fuse_ckpt.store import Adopted, Store, is_marked_damaged


class Committed(Struct, frozen=True):
    """What became of a sealed draft. `checkpoint` is None where it was what is committed already."""

    checkpoint: Checkpoint | None
    blobs: tuple[InodeKey, ...]  # inodes of the draft that are blobs now


def commit(store: Store, job: str, sealed: Sealed, doubt: str | None = None) -> Committed:
    """Adopt the members of a sealed draft as blobs, publish its checkpoint or amend one, and drop the draft's links.

    `doubt`: the disk failed before: all is copied. The text says what it could not write, and makes it `failed`.
    Raises CommitFailed, OSError or StoreUnusable; then the draft is as it was.
    """
    journal = sealed.journal
    with store.committing():
        sealed.sync()
        known = store.sealed_inodes(one.key for one in journal.files if one.link)
        adopted = _adopt_all(store, sealed, known, copied=doubt is not None)
        inodes = {one.inode: one.digest for one in adopted.values() if one.linked}
        entries, companions = _entries(journal, adopted)
        checkpoint = None
        if not _is_known(store, job, sealed, entries):
            failure = journal.failure or doubt or _shrunk(journal, adopted) or _fault(sealed)
            failure = failure or _damage(store, job, journal, known)
            new = NewCheckpoint(
                job, journal.unit, journal.node, journal.created_ns, _metadata_of(sealed), entries, companions,
                tuple(inodes.items()), journal.parent, journal.run, failure, sealed.directory.name,
            )  # fmt: skip
            checkpoint = _amend(store, journal, new) or store.publish(new)
        sealed.discard()
    return Committed(checkpoint, tuple(inodes))


def _adopt_all(store: Store, sealed: Sealed, known: Mapping[InodeKey, str], *, copied: bool) -> dict[str, Adopted]:
    """Link → what became of it. What is a blob already (`known`: its digest) is not read again."""
    linked = [one for one in sealed.journal.files if one.link]
    adopted = {
        one.link: Adopted(known[one.key], one.size, True, one.key) for one in linked if one.key in known
    }  # fmt: skip
    fresh = [one.link for one in linked if one.key not in known]
    sources = [sealed.directory / link for link in fresh]
    try:
        done = list(map(store.adopt_copy, sources)) if copied else store.adopt_all(sources)
    except NotWritten as exc:
        paths = {one.link: one.path for one in linked}
        raise NotWritten(paths.get(exc.name, exc.name), exc.why) from exc
    return adopted | dict(zip(fresh, done, strict=True))


def _entries(journal: Journal, adopted: Mapping[str, Adopted]) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The entries and the companions."""
    made: dict[bool, list[Entry]] = {False: [], True: []}
    for linked in journal.files:
        entry = linked.entry(journal.unit.prefix, "")
        if linked.link:
            entry = replace(entry, digest=adopted[linked.link].digest, size=adopted[linked.link].size)
        made[linked.companion].append(entry)
    return tuple(made[False]), tuple(made[True])


def _shrunk(journal: Journal, adopted: Mapping[str, Adopted]) -> str | None:
    """A power cut took what close() had not made durable."""
    for linked in journal.files:
        if linked.link and adopted[linked.link].size != linked.size:
            return f"{linked.path} had {linked.size} bytes when it was sealed, now {adopted[linked.link].size}"
    return None


def _fault(sealed: Sealed) -> str | None:
    """What the look that was not taken in haste would have found."""
    if not sealed.journal.hasty:
        return None
    links = {linked.path: linked.link for linked in sealed.journal.files if linked.link and not linked.companion}
    fd = os.open(sealed.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return validate.fault_of(fd, links, described=sealed.journal.described, part=sealed.journal.part)
    finally:
        os.close(fd)


def _damage(store: Store, job: str, journal: Journal, known: Mapping[InodeKey, str]) -> str | None:
    """What was found to be damaged in the unit's newest checkpoint, if the draft has files of it, unread."""
    newest = store.newest(job, journal.unit.name)
    if newest is None or not is_marked_damaged(newest.checkpoint):
        return None
    shared = {entry.digest for entry in newest.entries}.intersection(known.values())
    return newest.checkpoint.failure if shared else None


def _is_known(store: Store, job: str, sealed: Sealed, entries: tuple[Entry, ...]) -> bool:
    """Whether this draft was published before a crash, or holds only what an earlier mount committed."""
    newest = store.newest(job, sealed.journal.unit.name, deleted=True)
    if newest is None:
        return False
    if newest.checkpoint.draft == sealed.directory.name:
        return True
    digests = {entry.path: entry.digest for entry in entries if entry.kind is Kind.FILE}
    return sealed.journal.recovered and is_in(newest, digests)


def is_in(newest: Manifest, digests: Mapping[str, str | None]) -> bool:
    """Whether files found in the tree (path below the unit → digest) are what the unit's `newest` checkpoint holds.

    Files of the checkpoint that the tree lacks make no difference: a removal is no new version.
    """
    committed = {entry.path: entry.digest for entry in newest.entries if entry.kind is Kind.FILE}
    return all(digest is not None and committed.get(path) == digest for path, digest in digests.items())


def _amend(store: Store, journal: Journal, new: NewCheckpoint) -> Checkpoint | None:
    """The newest checkpoint of the unit, if the draft only adds files to it and nobody has relied on it yet."""
    newest = store.newest(new.job, new.unit.name) if journal.amends else None
    if newest is None or newest.checkpoint.draft != journal.amends:
        return None
    if new.failure is not None and newest.checkpoint.state is not State.FAILED:
        return None  # what is whole is not spoilt by what came late
    if not _holds(new, newest):
        return None
    there = {entry.path for entry in newest.entries}
    beside = {entry.path for entry in newest.companions}
    entries = tuple(entry for entry in new.entries if entry.path not in there)
    companions = tuple(entry for entry in new.companions if entry.path not in beside)
    return store.amend(newest.checkpoint, replace(new, entries=entries, companions=companions))


def _holds(new: NewCheckpoint, before: Manifest) -> bool:
    """Whether each file of `before` is in `new` with the same bytes, and no other kind of thing has the name of one of
    its entries. Logs may be anything."""
    now = {entry.path: entry for entry in new.entries}
    head = f"{new.unit.prefix}/" if new.unit.prefix else ""
    return all(
        _is_same(entry, now.get(entry.path), log=goes_on(head + entry.path) and entry.kind is Kind.FILE)
        for entry in before.entries
    )


def _is_same(before: Entry, now: Entry | None, *, log: bool) -> bool:
    if now is None:
        return log or before.kind is not Kind.FILE
    return now.kind is before.kind and (log or (now.digest, now.target) == (before.digest, before.target))


def _metadata_of(sealed: Sealed) -> metadata.Metadata:
    unit = sealed.journal.unit

    def opener(linked: Linked) -> Callable[[], BinaryIO]:
        return lambda: open(sealed.source(linked), "rb")

    members = {
        linked.entry(unit.prefix, "").path: opener(linked)
        for linked in sealed.journal.files
        if linked.link and not linked.companion
    }
    return metadata.extract(unit.name, members)
