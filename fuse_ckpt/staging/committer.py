"""The committer: the task that seals drafts when they are due and has sealed ones turned into checkpoints.

Looking at a draft, linking it and committing it take place in threads, so that training waits for none of them. The
last step of a seal takes place in the event loop, between two requests of the kernel: what was looked at is still so,
or the draft is looked at again. Several drafts are committed at once, so that a small one need not wait for a huge
one; two of one name never are.
"""

from __future__ import annotations

import errno
import logging
import math
from functools import partial
from pathlib import Path

import trio
from msgspec import Struct

from fuse_ckpt.errors import CommitFailed, FuseCkptError, NotWritten
from fuse_ckpt.model import Checkpoint, State, Unit
from fuse_ckpt.staging.area import Area
from fuse_ckpt.staging.commit import Committed, commit
from fuse_ckpt.staging.drafts import Draft
from fuse_ckpt.staging.journal import Sealed, why_stuck
from fuse_ckpt.staging.lanes import LANES, next_draft
from fuse_ckpt.staging.processes import UNSEEN, open_process, wait_exit
from fuse_ckpt.staging.workers import Workers
from fuse_ckpt.staging.worktree import Scan
from fuse_ckpt.store import Store

_log = logging.getLogger(__name__)

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}

DRAIN_PATIENCE = 10.0  # seconds
RETRY_COMMIT = 30.0  # seconds; the disk may have room by then
RETRY_FAILED = 10.0  # seconds; the tree could not be read or linked
RETRY_SEAL = 1.0  # seconds; somebody can still write a member, though no handle of the mount is open


class Statistics(Struct):
    """What the committer has done since the mount."""

    committed: int = 0
    amended: int = 0  # got files that came late
    failed: int = 0  # published as `failed`
    stuck: int = 0  # could not be committed and wait in pending/
    bytes: int = 0
    last_error: str = ""


class Drained(Struct, frozen=True):
    """What became of what was pending: what was committed, in this order, and what is left, and why."""

    committed: tuple[Checkpoint, ...]
    left: dict[str, str]  # NAME → reason
    held: tuple[str, ...]  # those of them that are still written


class Committer:
    """Commits the drafts of one area. `run` is the task; the other methods are called from the same event loop."""

    def __init__(self, area: Area, store: Store, job: str) -> None:
        self.statistics = Statistics()
        self._area = area
        self._store = store
        self._job = job
        self._workers = Workers(LANES)
        self._wakeup = trio.Event()
        self._idle = trio.Condition()
        self._watched: set[int] = set()
        self._under_way: set[Path] = set()  # sealed drafts that a thread commits
        self._stuck: dict[Path, tuple[float, Sealed]] = {}  # could not be committed, and when to try again
        self._refused: dict[Unit, float] = {}  # units that somebody can still write, and when to ask again
        self._heard: list[list[Checkpoint]] = []  # who wants to hear what is committed
        area.wake = self._wake

    async def run(self) -> None:
        """Seal and commit until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._area.watch = partial(self._watch, nursery)
                while True:
                    self._wakeup = trio.Event()
                    if not await self._step(nursery):
                        await self._tell()
                        with trio.move_on_after(self._patience()):
                            await self._wakeup.wait()
        finally:
            self._workers.close()

    async def drain(self, name: str | None = None) -> Drained:
        """Take every draft (of that NAME) as finished, and return when all that can be committed is.

        A draft that somebody can still write after DRAIN_PATIENCE stays in the working tree for the next mount.
        """
        self._area.finish(name)
        self._requeue(math.inf)
        committed: list[Checkpoint] = []
        self._heard.append(committed)
        try:
            async with self._idle:
                await self._idle.wait()
                deadline = self._area.clock() + DRAIN_PATIENCE
                while self._area.is_finishing(name) and (self._under_way or self._area.clock() < deadline):
                    await self._idle.wait()
        finally:
            self._heard = [one for one in self._heard if one is not committed]
        return self._drained(tuple(committed), name)

    def _drained(self, committed: tuple[Checkpoint, ...], name: str | None) -> Drained:
        held = [unit.name for unit, draft in self._area.drafts.items() if self._area.is_held(unit) or draft.finishing]
        left = dict.fromkeys(held, "it is still being written")
        left |= {sealed.journal.unit.name: why_stuck(sealed) or "" for _, sealed in self._stuck.values()}
        mine = {unit: why for unit, why in left.items() if name in (None, unit)}
        done = tuple(one for one in committed if name in (None, one.name))
        return Drained(done, mine, tuple(unit for unit in mine if unit in held))

    async def _tell(self) -> None:
        """Nothing is to be done just now."""
        async with self._idle:
            self._idle.notify_all()

    def _wake(self) -> None:
        self._wakeup.set()

    def _watch(self, nursery: trio.Nursery, process: int) -> None:
        if process != UNSEEN and process not in self._watched:
            self._watched.add(process)
            nursery.start_soon(self._wait_exit, process, open_process(process))

    async def _wait_exit(self, process: int, pidfd: int | None) -> None:
        death = await wait_exit(process, pidfd)
        self._watched.discard(process)
        self._area.exited(process, death)

    async def _step(self, nursery: trio.Nursery) -> bool:
        """Do one thing that is due; False if nothing is."""
        now = self._area.clock()
        self._requeue(now)
        for path in self._area.doubts.changed(now):
            self._area.arrived(path, UNSEEN)
        for file in self._area.orphans.idle(now):
            self._area.left_open(file)
        sealed = next_draft(self._area.queue, self._under_way)
        if sealed is not None:
            self._under_way.add(sealed.directory)
            nursery.start_soon(self._commit, sealed, self._doubt(sealed))
            return True
        unit = self._ready()
        if unit is None:
            return False
        self._refused.pop(unit, None)
        draft = self._area.drafts[unit]
        version = draft.version
        try:
            await self._seal(draft, version)
        except Exception as exc:  # as below: it is tried again, and the mount goes on
            if self._is_still(draft, version):  # else that is why: a file was removed, and all of it was sealed first
                self._refused[unit] = self._area.clock() + RETRY_FAILED
                _log.warning("cannot seal %r, trying again: %s", unit.name, exc, exc_info=_traceback(exc))
        return True

    def _ready(self) -> Unit | None:
        due = self._area.due(self._refused)
        return due[1] if due is not None and due[0] <= self._area.clock() else None

    def _patience(self) -> float:
        due = self._area.due(self._refused)
        times = [when for when, _ in self._stuck.values()] + ([due[0]] if due is not None else [])
        looks = (self._area.doubts.next_look(), self._area.orphans.next_look())
        return max(0.0, min(*looks, *times, math.inf) - self._area.clock())

    def _requeue(self, now: float) -> None:
        """Try the drafts again that could not be committed and whose time has come."""
        for path, (when, sealed) in list(self._stuck.items()):
            if when <= now and when != math.inf:
                del self._stuck[path]
                self._area.queue.append(sealed)

    async def _seal(self, draft: Draft, version: int) -> None:
        unit = draft.unit
        self._area.sealed.looking()
        scan, fault = await trio.to_thread.run_sync(self._area.inspect, unit)
        if not self._is_still(draft, version):
            return
        if not scan.files:
            self._area.drafts.drop(unit)
        elif fault is not None and not self._area.is_over(unit):
            self._area.not_whole(draft, fault)
        elif not await self._prepare_and_take(draft, version, scan, fault):
            self._refused[unit] = self._area.clock() + RETRY_SEAL

    async def _prepare_and_take(self, draft: Draft, version: int, scan: Scan, fault: str | None) -> bool:
        """False where somebody can still write one of the files."""
        files = (*scan.files, *scan.companions)
        self._area.sealed.hide(files, self._area.tree.look)
        try:
            sealed = await trio.to_thread.run_sync(self._area.prepare, draft, scan, fault)
            if sealed is None:
                return False
            held = self._area.is_held(draft.unit) or self._area.is_open(sealed)
            if self._is_still(draft, version) and not held:
                self._area.take(draft, sealed)
            else:
                await trio.to_thread.run_sync(sealed.discard)
        finally:
            self._area.sealed.unhide()
        return True

    def _is_still(self, draft: Draft, version: int) -> bool:
        return self._area.drafts.get(draft.unit) is draft and draft.version == version

    def _doubt(self, sealed: Sealed) -> str | None:
        """What the disk could not do with a file of the draft, perhaps by its name in another one; None if nothing."""
        known = [self._area.unwritten[key] for key in sealed.keys if key in self._area.unwritten]
        if known and sealed.distrusted() is None:
            sealed.distrust(known[0])
        return known[0] if known else sealed.distrusted()

    async def _commit(self, sealed: Sealed, doubt: str | None) -> None:
        try:
            committed = await self._workers.run(commit, self._store, self._job, sealed, doubt)
        except Exception as exc:  # a draft that cannot be committed must not end the task, and with it the mount
            self._put_aside(sealed, exc)
        else:
            self._area.queue.remove(sealed)
            self._settle(sealed, committed)
        finally:
            self._under_way.discard(sealed.directory)
            self.statistics.stuck = len(self._stuck)
            self._wake()

    def _settle(self, sealed: Sealed, committed: Committed) -> None:
        self._area.sealed.settle(sealed, committed.blobs)
        checkpoint = committed.checkpoint
        if checkpoint is None:
            return
        self._area.recent.committed(sealed, self._area.clock())
        for heard in self._heard:
            heard.append(checkpoint)
        count(self.statistics, checkpoint)

    def _put_aside(self, sealed: Sealed, exc: Exception) -> None:
        """Keep a draft that could not be committed; one that the disk could not write is committed as `failed` at once.

        One that is tried again takes those of the same unit that came after it with it: their order is to stay.
        """
        if isinstance(exc, NotWritten) and self._area.unwritten.keys().isdisjoint(sealed.keys):
            self._area.unwritten.update(dict.fromkeys(sealed.keys, str(exc)))
            _log.error("cannot commit %r as it was written: %s", sealed.journal.unit.name, exc)
            return
        again = isinstance(exc, CommitFailed) or (isinstance(exc, OSError) and exc.errno in _PASSING)
        when = self._area.clock() + RETRY_COMMIT if again else math.inf
        later = [one for one in self._area.queue if again and one.journal.unit == sealed.journal.unit]
        for one in later or [sealed]:
            self._area.queue.remove(one)
            self._stuck[one.directory] = (when, one)
        self.statistics.last_error = f"{sealed.journal.unit.name or 'the root checkpoint'}: {exc}"
        sealed.note_error(str(exc))
        if isinstance(exc, OSError) and not again:
            sealed.distrust()
            self._area.unwritten.update(dict.fromkeys(sealed.keys, ""))
        told = f"in {RETRY_COMMIT:.0f} s" if again else "at the next mount"
        _log.error(
            "cannot commit %r, tried again %s: %s", sealed.journal.unit.name, told, exc, exc_info=_traceback(exc)
        )


def count(statistics: Statistics, checkpoint: Checkpoint) -> None:
    """Note what was committed, and say it."""
    statistics.bytes += checkpoint.size
    name = checkpoint.name
    if checkpoint.state is State.FAILED:
        statistics.failed += 1
        _log.warning("%r is not whole, kept as failed %s: %s", name, checkpoint.id, checkpoint.failure)
    elif checkpoint.revision > 1:
        statistics.amended += 1
        _log.info("amended %s %r, revision %d", checkpoint.id, name, checkpoint.revision)
    else:
        statistics.committed += 1
        _log.info("committed %s %r, %d bytes", checkpoint.id, name, checkpoint.size)


def _traceback(error: Exception) -> Exception | None:
    """What a log needs beside the message: nothing for what the disk or the store says, all for a bug."""
    return None if isinstance(error, OSError | FuseCkptError) else error
