"""The keeper: the task of a mount that removes what the job's policy does not keep, and lets go of what was deleted.

It looks once a second whether the index has changed or the disk got full; the work itself is done in a worker thread.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable

import trio
from msgspec import Struct

from fuse_ckpt.errors import Collecting, FuseCkptError
from fuse_ckpt.model import Checkpoint, InodeKey
from fuse_ckpt.staging import Area
from fuse_ckpt.store import Store, Uses
from fuse_ckpt.vfs import Filesystem

_log = logging.getLogger(__name__)

TICK = 1.0  # seconds
PACE = 10.0  # seconds; others' commits, and a disk that stays full, are no reason to look through the job each second
REMINDER = 5.0  # seconds between two words to the kernel that a checkpoint which is in use is deleted
HOUR = 3600.0  # seconds between two looks at a policy that nothing but the time has changed for


class Kept(Struct):
    """What the keeper has done since the mount."""

    removed: int = 0  # moved to the trash
    evicted: int = 0  # let go of here: they are in an object store, too
    collected: int = 0
    freed: int = 0  # bytes of the disk
    unsealed: int = 0  # working files whose blobs were collected, by whomever
    last_error: str = ""


class Keeper:
    """Keeps one mount; `job` and `area` are None for the mount that shows all checkpoints and removes none.

    `commits` tells how many checkpoints the mount has committed so far.
    """

    def __init__(
        self,
        store: Store,
        filesystem: Filesystem,
        uses: Uses,
        job: str | None = None,
        area: Area | None = None,
        commits: Callable[[], int] = lambda: 0,
    ) -> None:
        self.done = Kept()
        self._store = store
        self._filesystem = filesystem
        self._uses = uses
        self._job = job
        self._area = area
        self._commits = commits
        self._committed = -1
        self._generation = -1
        self._collections = store.totals().collections
        self._min_free = 0
        self._earliest = self._latest = -math.inf  # when to tidy again; seconds of the monotonic clock
        self._remind = math.inf  # when to tell the kernel again what was deleted

    async def run(self) -> None:
        """Look and tidy until cancelled."""
        while True:
            await self.look()
            await trio.sleep(TICK)

    async def look(self) -> None:
        """Do what is due. Never fails: what goes wrong is logged once."""
        generation = self._store.generation()
        changed, self._generation = generation != self._generation, generation
        try:
            if changed or time.monotonic() >= self._remind:
                await self._let_go()
            if self._job is not None and self._is_due(changed):
                await trio.to_thread.run_sync(self._tidy, self._job)
        except Exception as exc:  # a policy that cannot be applied must not end the mount
            self._complain(exc)

    async def finish(self) -> None:
        """The mount has gone: tidy for the last time, now that nobody looks at anything."""
        self._uses.close()
        try:
            if self._job is not None:
                await trio.to_thread.run_sync(self._tidy, self._job)
        except Exception as exc:  # as above
            self._complain(exc)

    def _is_due(self, changed: bool) -> bool:
        now = time.monotonic()
        if self._commits() != self._committed:
            return True
        return now >= self._earliest and (changed or now >= self._latest or self._free() < self._min_free)

    # -- what was deleted or collected, by whomever -------------------------------------------------------------------

    async def _let_go(self) -> None:
        deleted, collections = await trio.to_thread.run_sync(self._news, list(self._uses.held))
        for checkpoint in deleted:
            self._filesystem.views.forget(checkpoint)
        self._remind = time.monotonic() + REMINDER if deleted else math.inf
        if self._area is not None and collections != self._collections:
            self._collections = collections
            blobs = self._area.sealed.blobs
            still = await trio.to_thread.run_sync(self._store.sealed_inodes, blobs)
            self._unseal(key for key in blobs if key not in still)

    def _news(self, held: Collection[str]) -> tuple[list[Checkpoint], int]:
        return self._store.deleted_among(held), self._store.totals().collections

    def _unseal(self, keys: Iterable[InodeKey]) -> None:
        """In the event loop, where nothing is committed between the question and its consequence."""
        assert self._area is not None
        for key in keys:
            if self._store.known_digest(key) is None:
                self._area.sealed.collected(key)
                self.done.unsealed += 1

    # -- the policy, in a worker thread -------------------------------------------------------------------------------

    def _tidy(self, name: str) -> None:
        self._committed = self._commits()
        job = self._store.job(name)
        self._min_free = job.min_free or 0
        plan = self._store.plan(time.time_ns(), name, min_free=self._min_free)
        try:
            tidied = self._store.tidy(plan, f"The mount of job {name}, process {os.getpid()},")
        except Collecting:
            self._earliest, self._latest = time.monotonic(), time.monotonic() + TICK
            return
        for one in tidied.evicted:
            _log.info("let go of the bytes of %s %r here, by policy; they are in %s", one.id, one.name, one.remote)
        for one in tidied.removed:
            _log.info("removed %s %r, by policy", one.id, one.name)
        self.done.evicted += len(tidied.evicted)
        self.done.removed += len(tidied.removed)
        self.done.collected += len(tidied.collected)
        self.done.freed += tidied.cleared.free
        now = time.monotonic()
        self._earliest = now if tidied.cleared.free else now + PACE
        self._latest = now + (PACE if tidied.kept or tidied.cleared.waiting else HOUR)

    def _free(self) -> int:
        disk = os.statvfs(self._store.layout.root)
        return disk.f_bavail * disk.f_frsize

    def _complain(self, error: Exception) -> None:
        known = isinstance(error, OSError | FuseCkptError)
        if str(error) != self.done.last_error:
            _log.error("cannot tidy up: %s", error, exc_info=None if known else error)
        self.done.last_error = str(error)
