"""The staging area: which drafts are growing in the working tree, and which of its inodes may never be written again.

The filesystem reports what happened (`Growth`), and asks two questions: is this inode sealed, and may this be
destroyed. Everything here is synchronous, so each report is one step: nothing can come between a look at the tree and
the seal that follows it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fuse_ckpt.model import Unit
from fuse_ckpt.staging import policy, validate
from fuse_ckpt.staging.drafts import Draft
from fuse_ckpt.staging.growth import Growth
from fuse_ckpt.staging.journal import Sealed
from fuse_ckpt.staging.sealed import SealedInodes
from fuse_ckpt.staging.sealing import Sealer
from fuse_ckpt.staging.settings import Settings
from fuse_ckpt.staging.units import UnitRules, goes_on
from fuse_ckpt.staging.worktree import Found, Scan, WorkTree

_log = logging.getLogger(__name__)

SURELY_BEFORE = 500_000_000  # ns; the disk's clock for mtimes is up to 10 ms behind, a program's start takes longer


class Area(Growth):
    """The drafts of one job's working tree, whose root is `root_fd`; sealed ones have their links below `pending`."""

    def __init__(
        self, root_fd: int, pending: Path, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        rules = UnitRules(settings.units)
        super().__init__(WorkTree(root_fd, rules), rules, settings.periods, clock)
        self.queue: list[Sealed] = []  # sealed, to be committed; two of one unit in this order
        self.sealed = SealedInodes()
        self._periods = settings.periods
        self._part = settings.part
        self._sealer = Sealer(self.tree, pending, settings, self.sealed, self._open)

    def add_sealed(self, *drafts: Sealed) -> None:
        """Queue sealed drafts: one just made, or all that an earlier mount left."""
        self.sealed.add(*drafts)
        self._sealer.follow(*drafts)
        self.queue.extend(drafts)
        self.wake()

    # -- before something is destroyed --------------------------------------------------------------------------------

    def about_to_lose(self, path: str, *, rewritten: bool) -> None:
        """Called before a name or its bytes are destroyed: seals the unit first if it is complete and not committed.

        `rewritten`: by truncation, or by a rename over it, which may be part of the same save; else by removal.
        """
        unit = self.rules.unit_of(path)
        draft = self.drafts.get(unit) if unit is not None else None
        if draft is not None and self._may_be_lost(draft, rewritten) and self.tree.look(path) is not None:
            self._keep(draft)

    def about_to_move(self, old: str, new: str, *, directory: bool) -> None:
        """Called before a rename: seals the units that `new` would not name, and one that loses what is renamed."""
        below = "/file" if directory else ""
        left, unit = self.rules.unit_of(old + below), self.rules.unit_of(new + below)
        for draft in list(self.drafts.values()):
            name = draft.unit.name
            if directory and (name == old or name.startswith(old + "/")):
                loses = unit is None
            else:
                loses = draft.unit == left != unit and (unit is None or left.prefix == left.name)
            if loses and self._may_be_lost(draft, rewritten=False):
                self._keep(draft)

    def _keep(self, draft: Draft) -> None:
        if draft.incomplete_at == draft.progress:
            return
        unit = draft.unit
        try:
            scan, fault = self.inspect(unit)
            if fault is not None or not scan.files:
                self.not_whole(draft, fault)
            else:
                self.seal(unit, scan, None, hasty=True)
        except OSError as exc:  # on a full disk rotation must still be able to free something
            _log.error("cannot keep %r, which is being removed before it was committed: %s", unit.name, exc)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def due(self, not_before: Mapping[Unit, float]) -> tuple[float, Unit] | None:
        """The draft that is due first and the time, on the area's clock, from which it is."""
        return self.drafts.due(not_before)

    def is_over(self, unit: Unit) -> bool:
        """Whether nobody is left who would finish the unit: it is committed as it is, whole or `failed`."""
        return policy.is_over(self.drafts.view(self.drafts[unit]))

    def is_held(self, unit: Unit) -> bool:
        """Whether a file of the unit is open for writing."""
        return self._open.count_in(unit) > 0

    def is_open(self, sealed: Sealed) -> bool:
        """Whether a file that is about to be sealed is open for writing, under whatever name."""
        return any(key in self._open for key in sealed.keys)

    def not_whole(self, draft: Draft, fault: str | None) -> None:
        """It was looked at and lacks something: not again before it changes, or nobody is left to finish it."""
        draft.incomplete_at = draft.progress
        draft.fault = fault or ""
        self.drafts.altered(draft.unit)

    def finish(self, name: str | None = None) -> None:
        """Every draft (of that NAME) without an open writer is due; one that is written again is not any more."""
        for unit, draft in self.drafts.items():
            if name in (None, unit.name):
                draft.finishing = not self.is_held(unit)
                self.drafts.altered(unit)
        self.wake()

    def is_finishing(self, name: str | None = None) -> bool:
        """Whether something (of that NAME) that `finish` made due is still to be sealed or committed."""
        queued = any(name in (None, sealed.journal.unit.name) for sealed in self.queue)
        return queued or any(draft.finishing for unit, draft in self.drafts.items() if name in (None, unit.name))

    def inspect(self, unit: Unit) -> tuple[Scan, str | None]:
        """The unit as it lies in the tree, and what it lacks to be whole. Reads a little of each file."""
        scan = self.tree.scan(unit, self._open.keys())
        left = next((path for path in scan.temporary if not self._is_debris(path, unit, scan)), None)
        if left is not None:
            return scan, f"a temporary file is left in it: {left}"
        mark = self.tree.mark(unit)
        if mark is not None:
            return scan, f"{mark} says that the save was not finished"
        return scan, self._torn(unit, scan) or self._broken(unit, scan)

    def _is_debris(self, temporary: str, unit: Unit, scan: Scan) -> bool:
        """Whether a temporary file was left by an earlier save that died in the unit, and this one wrote all anew."""
        draft, found = self.drafts.get(unit), self.tree.look(temporary)
        if draft is None or draft.recovered or found is None or found.key in self._open:
            return False
        oldest = min((one.mtime_ns for one in scan.files if not goes_on(one.path)), default=0)
        return found.mtime_ns < min(oldest, draft.began_ns - SURELY_BEFORE)

    def _broken(self, unit: Unit, scan: Scan) -> str | None:
        """What the files' contents say; of what an earlier mount left nobody knows how it was closed, so all of it."""
        files = {found.path: found.path for found in scan.files}
        draft = self.drafts.get(unit)
        head = f"{unit.prefix}/" if unit.prefix else ""
        described = [(head + directory).rstrip("/") for directory in draft.described] if draft else []
        return validate.fault_of(
            self.tree.root_fd, files, described=described, thorough=draft is not None and draft.recovered,
            part=self._part,
        )  # fmt: skip

    def _torn(self, unit: Unit, scan: Scan) -> str | None:
        for found in scan.files:
            death = self._open.death_of(found.key)
            if death is not None:
                return f"{found.path} was not closed by its program: {death}"
        draft = self.drafts.get(unit)
        before = draft.amends if draft is not None else None
        abandoned = draft.abandoned if draft is not None else None
        if abandoned is None and before is not None and before.abandoned is not None and before.is_added_to(scan):
            abandoned = before.abandoned  # of a version that is written anew, it would mean nothing
        return f"{abandoned} before it was seen to be finished" if abandoned else None

    def prepare(self, draft: Draft, scan: Scan, failure: str | None) -> Sealed | None:
        """All of a seal that may be done in a thread; None where somebody can still write one of its files."""
        return self._sealer.prepare(draft, scan, failure)

    def take(self, draft: Draft, sealed: Sealed) -> None:
        """The last step of a seal: from here on nobody may write what was prepared."""
        sealed.take()
        self.drafts.drop(draft.unit)
        self.recent.sealed(sealed, draft.amends if sealed.journal.amends else None, draft.abandoned)
        self.add_sealed(sealed)

    def seal(self, unit: Unit, scan: Scan, failure: str | None, *, hasty: bool = False) -> bool:
        """Seal the draft of `unit` in this step; False where somebody can still write one of its files."""
        draft = self.drafts[unit]
        sealed = self._sealer.prepare(draft, scan, failure, hasty=hasty)
        if sealed is None:
            return False
        self.take(draft, sealed)
        return True

    def found(self, unit: Unit, files: Sequence[Found]) -> None:
        """A unit that an earlier mount left in the tree, and that may not be committed: due at once."""
        newest = max(files, key=lambda found: found.mtime_ns)
        draft = self.drafts.begin(unit, self.clock(), self.recent.of(unit, -math.inf))
        draft.recovered = True
        draft.closed(self.clock(), newest.path[len(unit.prefix) + 1 :] if unit.prefix else newest.path)
        draft.created_ns = newest.mtime_ns

    def size_of(self, unit: Unit) -> int:
        """Bytes of the unit's files as they lie in the tree."""
        return sum(found.size for found in self.tree.scan(unit).files)

    def _may_be_lost(self, draft: Draft, rewritten: bool) -> bool:
        return policy.may_be_lost(self.drafts.view(draft), self.clock(), self._periods, rewritten=rewritten)
