"""The committer: the task that seals drafts when they are due and turns sealed drafts into checkpoints.

Looking at a draft and committing one take place in a worker thread, so that training waits for neither. Sealing takes
place in the event loop, between two requests of the kernel: what was looked at is still so, or the draft is looked at
again."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio
from msgspec import Struct

from fuse_ckpt import metadata
from fuse_ckpt.errors import CommitFailed, FuseCkptError
from fuse_ckpt.model import Checkpoint, Entry, InodeKey, Kind, NewCheckpoint, State, Unit
from fuse_ckpt.staging.area import Area
from fuse_ckpt.staging.journal import Linked, Sealed
from fuse_ckpt.staging.processes import UNSEEN, wait_exit
from fuse_ckpt.store import Adopted, Store

_log = logging.getLogger(__name__)

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}

DRAIN_PATIENCE = 10.0  # seconds
RETRY_COMMIT = 30.0  # seconds; the disk may have room by then
RETRY_FAILED = 10.0  # seconds; the tree could not be read or linked
RETRY_SEAL = 1.0  # seconds; somebody can still write a member, though no handle of the mount is open


class Committed(Struct, frozen=True):
    """What became of a sealed draft. `checkpoint` is None where it was what is committed already."""

    checkpoint: Checkpoint | None
    blobs: tuple[InodeKey, ...]  # inodes of the draft that are blobs now


class Statistics(Struct):
    """What the committer has done since the mount."""

    committed: int = 0
    failed: int = 0  # published as `failed`
    stuck: int = 0  # could not be committed and wait in pending/
    bytes: int = 0
    last_error: str = ""


class Committer:
    """Commits the drafts of one area. `run` is the task; the other methods are called from the same event loop."""

    def __init__(self, area: Area, store: Store, job: str) -> None:
        self.statistics = Statistics()
        self._area = area
        self._store = store
        self._job = job
        self._wakeup = trio.Event()
        self._idle = trio.Condition()
        self._watched: set[int] = set()
        self._stuck: dict[Path, tuple[float, Sealed]] = {}  # could not be committed, and when to try again
        self._refused: dict[Unit, float] = {}  # units that somebody can still write, and when to ask again
        area.wake = self._wake

    async def run(self) -> None:
        """Seal and commit until cancelled."""
        async with trio.open_nursery() as nursery:
            self._area.watch = partial(self._watch, nursery)
            while True:
                self._wakeup = trio.Event()
                if not await self._step():
                    async with self._idle:
                        self._idle.notify_all()
                    with trio.move_on_after(self._patience()):
                        await self._wakeup.wait()

    async def drain(self) -> None:
        """Take every draft as finished, and return when all that can be committed is.

        A draft that somebody can still write after DRAIN_PATIENCE stays in the working tree for the next mount.
        """
        self._area.finish()
        self._requeue(math.inf)
        async with self._idle:
            await self._idle.wait()
            deadline = self._area.clock() + DRAIN_PATIENCE
            while self._area.is_finishing() and self._area.clock() < deadline:
                await self._idle.wait()

    def _wake(self) -> None:
        self._wakeup.set()

    def _watch(self, nursery: trio.Nursery, process: int) -> None:
        if process != UNSEEN and process not in self._watched:
            self._watched.add(process)
            nursery.start_soon(self._wait_exit, process)

    async def _wait_exit(self, process: int) -> None:
        death = await wait_exit(process)
        self._watched.discard(process)
        self._area.exited(process, death)

    async def _step(self) -> bool:
        """Do one thing that is due; False if nothing is."""
        self._requeue(self._area.clock())
        for path in self._area.doubts.changed(self._area.clock()):
            self._area.arrived(path, UNSEEN)
        if self._area.queue:
            await self._commit(self._area.queue[0])
            return True
        unit = self._ready()
        if unit is None:
            return False
        self._refused.pop(unit, None)
        try:
            await self._seal(unit)
        except Exception as exc:  # as below: it is tried again, and the mount goes on
            self._refused[unit] = self._area.clock() + RETRY_FAILED
            _log.warning("cannot seal %r, trying again: %s", unit.name, exc, exc_info=_traceback(exc))
        return True

    def _ready(self) -> Unit | None:
        due = self._area.due(self._refused)
        return due[1] if due is not None and due[0] <= self._area.clock() else None

    def _patience(self) -> float:
        due = self._area.due(self._refused)
        times = [when for when, _ in self._stuck.values()] + ([due[0]] if due is not None else [])
        return max(0.0, min(self._area.doubts.next_look(), *times, math.inf) - self._area.clock())

    def _requeue(self, now: float) -> None:
        """Try the drafts again that could not be committed and whose time has come."""
        for path, (when, sealed) in list(self._stuck.items()):
            if when <= now and when != math.inf:
                del self._stuck[path]
                self._area.queue.append(sealed)

    async def _seal(self, unit: Unit) -> None:
        draft = self._area.drafts[unit]
        version = draft.version
        scan, fault = await trio.to_thread.run_sync(self._area.inspect, unit)
        if self._area.drafts.get(unit) is not draft or draft.version != version:
            return
        if not scan.files:
            del self._area.drafts[unit]
        elif fault is not None and not self._area.is_over(unit):
            draft.incomplete_at = draft.progress
        elif not self._area.seal(unit, scan, fault):
            self._refused[unit] = self._area.clock() + RETRY_SEAL

    async def _commit(self, sealed: Sealed) -> None:
        try:
            committed = await trio.to_thread.run_sync(commit, self._store, self._job, sealed)
        except Exception as exc:  # a draft that cannot be committed must not end the task, and with it the mount
            self._area.queue.remove(sealed)
            self._put_aside(sealed, exc)
            return
        finally:
            self.statistics.stuck = len(self._stuck)
        self._area.queue.remove(sealed)
        self._area.sealed.settle(sealed, committed.blobs)
        checkpoint = committed.checkpoint
        if checkpoint is None:
            return
        self.statistics.bytes += checkpoint.size
        if checkpoint.state is State.FAILED:
            self.statistics.failed += 1
            _log.warning("%r is not whole, kept as failed %s: %s", checkpoint.name, checkpoint.id, checkpoint.failure)
        else:
            self.statistics.committed += 1
            _log.info("committed %s %r, %d bytes", checkpoint.id, checkpoint.name, checkpoint.size)

    def _put_aside(self, sealed: Sealed, exc: Exception) -> None:
        """Keep a draft that could not be committed. After an error of the disk no later fsync can be trusted here."""
        again = isinstance(exc, CommitFailed) or (isinstance(exc, OSError) and exc.errno in _PASSING)
        self._stuck[sealed.directory] = (self._area.clock() + RETRY_COMMIT if again else math.inf, sealed)
        self.statistics.last_error = f"{sealed.journal.unit.name or 'the root checkpoint'}: {exc}"
        sealed.note_error(str(exc))
        if isinstance(exc, OSError) and not again:
            sealed.distrust()
        when = f"in {RETRY_COMMIT:.0f} s" if again else "at the next mount"
        _log.error(
            "cannot commit %r, tried again %s: %s", sealed.journal.unit.name, when, exc, exc_info=_traceback(exc)
        )


def _traceback(error: Exception) -> Exception | None:
    """What a log needs beside the message: nothing for what the disk or the store says, all for a bug."""
    return None if isinstance(error, OSError | FuseCkptError) else error


def commit(store: Store, job: str, sealed: Sealed) -> Committed:
    """Adopt the members of a sealed draft as blobs, publish its checkpoint, and drop the draft's links.

    Runs in a worker thread. Raises CommitFailed, OSError or StoreUnusable; then the draft is as it was.
    """
    journal = sealed.journal
    with store.committing():
        sealed.sync()
        entries: list[Entry] = []
        companions: list[Entry] = []
        inodes: dict[InodeKey, str] = {}
        failure = journal.failure
        for linked in journal.files:
            entry = linked.entry(journal.unit.prefix, "")
            if linked.link:
                adopted = _adopt(store, sealed, linked, inodes)
                entry = msgspec.structs.replace(entry, digest=adopted.digest, size=adopted.size)
                if adopted.size != linked.size:  # a power cut took what close() had not made durable
                    failure = failure or f"{linked.path} had {linked.size} bytes when it was sealed, now {adopted.size}"
            (companions if linked.companion else entries).append(entry)
        checkpoint = None
        if not _is_known(store, job, sealed, entries):
            new = NewCheckpoint(
                job, journal.unit, journal.node, journal.created_ns, _metadata_of(sealed), tuple(entries),
                tuple(companions), tuple(inodes.items()), journal.parent, journal.run, failure,
                sealed.directory.name,
            )  # fmt: skip
            checkpoint = store.publish(new)
        sealed.discard()
    return Committed(checkpoint, tuple(inodes))


def _adopt(store: Store, sealed: Sealed, linked: Linked, inodes: dict[InodeKey, str]) -> Adopted:
    known = store.known_digest(linked.key)
    if known is not None:
        adopted = Adopted(known, linked.size, True, linked.key)
    else:
        adopted = (store.adopt_copy if sealed.is_distrusted() else store.adopt)(sealed.source(linked))
    if adopted.linked:
        inodes[adopted.inode] = adopted.digest
    return adopted


def _is_known(store: Store, job: str, sealed: Sealed, entries: list[Entry]) -> bool:
    """Whether this draft was published before a crash, or holds only what an earlier mount committed."""
    newest = store.newest(job, sealed.journal.unit.name, deleted=True)
    if newest is None:
        return False
    if newest.checkpoint.draft == sealed.directory.name:
        return True
    digests = {entry.path: entry.digest for entry in entries if entry.kind is Kind.FILE}
    return sealed.journal.recovered and is_committed(store, job, sealed.journal.unit, digests)


def is_committed(store: Store, job: str, unit: Unit, digests: Mapping[str, str | None]) -> bool:
    """Whether files found in the tree (path below the unit → digest) are what the unit's newest checkpoint holds.

    Files of the checkpoint that the tree lacks make no difference: a removal is no new version.
    """
    newest = store.newest(job, unit.name, deleted=True)  # what was deleted is not to come back by itself
    if newest is None:
        return False
    committed = {entry.path: entry.digest for entry in newest.entries if entry.kind is Kind.FILE}
    return all(digest is not None and committed.get(path) == digest for path, digest in digests.items())


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
