"""The staging area: which drafts are growing in the working tree, and which of its inodes may never be written again.

The filesystem reports what happened, in the order in which it happened, and asks two questions: is this inode sealed,
and may this be destroyed. Everything here is synchronous, so each report is one step: nothing can come between a look
at the tree and the seal that follows it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fuse_ckpt.model import InodeKey, Kind, Shape, Unit
from fuse_ckpt.staging import journal, policy, validate
from fuse_ckpt.staging.doubts import Doubts
from fuse_ckpt.staging.drafts import Draft
from fuse_ckpt.staging.journal import Journal, Sealed
from fuse_ckpt.staging.open_files import OpenFile, OpenFiles
from fuse_ckpt.staging.processes import process_of
from fuse_ckpt.staging.sealed import SealedInodes
from fuse_ckpt.staging.settings import Settings
from fuse_ckpt.staging.units import UnitRules, is_companion, is_temporary
from fuse_ckpt.staging.worktree import Found, Scan, WorkTree

_log = logging.getLogger(__name__)

_UNFINISHED = "-unfinished"  # NeMo's mark beside a checkpoint while it is written


class Area:
    """The drafts of one job's working tree, whose root is `root_fd`; sealed ones have their links below `pending`.

    `wake` is called when a decision may have become due, `watch` with each process that writes; the committer sets
    both. `clock` is monotonic, in seconds.
    """

    def __init__(
        self, root_fd: int, pending: Path, settings: Settings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rules = UnitRules(settings.units)
        self.tree = WorkTree(root_fd, self.rules)
        self.clock = clock
        self.wake: Callable[[], None] = lambda: None
        self.watch: Callable[[int], None] = lambda process: None
        self.queue: list[Sealed] = []  # sealed, to be committed in this order
        self.drafts: dict[Unit, Draft] = {}
        self._pending = pending
        self.doubts = Doubts(self.tree)
        self.sealed = SealedInodes()
        self._settings, self._periods = settings, settings.periods
        self._open = OpenFiles()
        self._gone: set[int] = set()  # writers that have exited

    # -- sealed drafts ------------------------------------------------------------------------------------------------

    def add_sealed(self, *drafts: Sealed) -> None:
        """Queue sealed drafts: one just made, or all that an earlier mount left."""
        self.sealed.add(*drafts)
        self.queue.extend(drafts)
        self.wake()

    # -- what happens in the output directory -------------------------------------------------------------------------

    def opened(self, path: str, key: InodeKey, task: int, *, changed: bool) -> int:
        """A file was opened for writing; `changed`: created or truncated by that. Returns the writer's process."""
        process = process_of(task)
        self._open.opened(path, key, process, changed=changed)
        self._gone.discard(process)
        unit = self.rules.member_of(path)
        if unit is None:
            return process
        if changed and (self.rules.unit_of(path) is not None or unit in self.drafts):
            self._touch(unit, process)
        self._hint_others(unit, process)
        return process

    def released(self, key: InodeKey, *, changed: bool, death: str | None = None, names: Iterable[str] = ()) -> None:
        """The last close of one open file description. `changed`: its bytes are not those before it was opened.

        `death`: how its writer died, where only that closed it. `names`: all that are known of it where there are
        several, since each may belong to another unit.
        """
        file = self._open.released(key, changed=changed, death=death)
        if file is None:
            return
        for path in {file.path, *names} if changed and file.path is not None else ():
            unit = self.rules.unit_of(path)
            if unit is not None:
                self._touch(unit, *file.processes).closed(self.clock(), _below(unit, path))
            elif is_companion(path):
                self.pointed(self.tree.pointer(path))
        if self.drafts:
            self.wake()

    def renamed(self, old: str, new: str, task: int, *, directory: bool) -> None:
        """`old` is `new` now, and whatever `new` was has gone."""
        self._open.renamed(old, new)
        if directory:
            self._directory_renamed(old, new, task)
            return
        left = self.rules.member_of(old)
        if left is not None and left != self.rules.unit_of(new):
            self._lost(left, old)
        self.arrived(new, task)

    def exchanged(self, one: str, other: str, task: int) -> None:
        """Two names were swapped (renameat2, RENAME_EXCHANGE)."""
        self._open.exchanged(one, other)
        for path in (one, other):
            found = self.tree.look(path)
            if found is not None and found.kind is Kind.DIRECTORY:
                self._directory_renamed(path, path, task)
            else:
                self.arrived(path, task)

    def removed(self, path: str, task: int) -> None:
        """A name has gone."""
        self._open.removed(path)
        unit = self.rules.member_of(path)
        if unit is not None and self.drafts:
            self._lost(unit, path)
            self._hint_others(unit, process_of(task))
        self.wake()

    def exited(self, process: int, death: str | None = None) -> None:
        """A writer is no more; `death`: how it died, if not by its own will."""
        self._gone.add(process)
        if death is not None:
            for draft in self.drafts.values():
                if process in draft.processes and policy.may_lack_members(draft.view(self)):
                    draft.abandoned = draft.abandoned or death
        self.wake()

    def about_to_lose(self, path: str, *, rewritten: bool) -> None:
        """Called before a name or its bytes are destroyed: seals the unit first if it is complete and not committed.

        `rewritten`: by truncation, or by a rename over it, which may be part of the same save; else by removal.
        """
        unit = self.rules.unit_of(path)
        draft = self.drafts.get(unit) if unit is not None else None
        if unit is None or draft is None or not self._may_be_lost(draft, rewritten):
            return
        if draft.incomplete_at == draft.progress or self.tree.look(path) is None:
            return
        try:
            scan, fault = self.inspect(unit)
            if fault is not None or not scan.files:
                draft.incomplete_at = draft.progress
            else:
                self.seal(unit, scan, None)
        except OSError as exc:  # on a full disk rotation must still be able to free something
            _log.error("cannot keep %r, which is being removed before it was committed: %s", unit.name, exc)

    def lost_below(self, directory: str) -> None:
        """Called before a directory is renamed over or away: every complete unit in it is sealed first."""
        for unit, draft in list(self.drafts.items()):
            if unit.name == directory or unit.name.startswith(directory + "/"):
                newest = f"{unit.prefix}/{draft.newest}" if unit.prefix else draft.newest
                self.about_to_lose(newest, rewritten=False)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def due(self, not_before: Mapping[Unit, float]) -> tuple[float, Unit] | None:
        """The draft that is due first and the time, on the area's clock, from which it is."""
        times = [
            (max(when, not_before.get(unit, when)), unit)
            for unit, draft in self.drafts.items()
            if (when := policy.due(draft.view(self), self._periods)) is not None
            and (draft.incomplete_at != draft.progress or self.is_over(unit))
        ]
        return min(times, key=lambda pair: pair[0], default=None)

    def is_over(self, unit: Unit) -> bool:
        """Whether nobody is left who would finish the unit: it is committed as it is, whole or `failed`."""
        view = self.drafts[unit].view(self)
        return view.finishing or (view.live_writers is False and not view.open_writers)

    def finish(self) -> None:
        """Every draft without an open writer is due; one that is written again is not any more."""
        for unit, draft in self.drafts.items():
            draft.finishing = not any(self.open_in(unit))
        self.wake()

    def is_finishing(self) -> bool:
        """Whether something that `finish` made due is still to be sealed or committed."""
        return bool(self.queue) or any(draft.finishing for draft in self.drafts.values())

    def inspect(self, unit: Unit) -> tuple[Scan, str | None]:
        """The unit as it lies in the tree, and what it lacks to be whole. Reads a little of each file."""
        scan = self.tree.scan(unit, self._open.keys())
        if scan.temporary:
            return scan, f"a temporary file is left in it: {scan.temporary[0]}"
        return scan, self._torn(unit, scan) or validate.fault_of(self.tree.root_fd, [f.path for f in scan.files])

    def _torn(self, unit: Unit, scan: Scan) -> str | None:
        for found in scan.files:
            death = self._open.death_of(found.key)
            if death is not None and found.key not in self.sealed:
                return f"{found.path} was not closed by its program: {death}"
        draft = self.drafts.get(unit)
        if draft is None or draft.abandoned is None:
            return None
        return f"{draft.abandoned} before it was seen to be finished"

    def seal(self, unit: Unit, scan: Scan, failure: str | None) -> bool:
        """Seal the draft of `unit`; False where somebody can still write one of its files."""
        draft = self.drafts[unit]
        if any(self.tree.is_written(found) for found in scan.files if found.key not in self.sealed):
            return False
        created = draft.created_ns or max((found.mtime_ns for found in scan.files), default=time.time_ns())
        record = Journal(
            unit, created, time.time_ns(), (), self._settings.node, self._settings.parent, self._settings.run, failure,
            draft.recovered,
        )  # fmt: skip
        sealed = journal.seal(self.tree, self._pending, scan, record)
        del self.drafts[unit]
        self.add_sealed(sealed)
        return True

    def found(self, unit: Unit, files: Sequence[Found]) -> None:
        """A unit that an earlier mount left in the tree, and that may not be committed: due at once."""
        newest = max(files, key=lambda found: found.mtime_ns)
        draft = self.drafts[unit] = Draft(unit, self.clock())
        draft.recovered = True
        draft.closed(self.clock(), _below(unit, newest.path))
        draft.created_ns = newest.mtime_ns

    def open_in(self, unit: Unit) -> Iterator[OpenFile]:
        """The files of a unit that are open for writing, those under temporary names with them."""
        return (f for f in self._open if f.path is not None and self._is_part_of(f.path, unit))

    def size_of(self, unit: Unit) -> int:
        """Bytes of the unit's files as they lie in the tree."""
        return sum(found.size for found in self.tree.scan(unit).files)

    def has_exited(self, process: int) -> bool:
        return process in self._gone

    def _is_part_of(self, path: str, unit: Unit) -> bool:
        if unit.shape is Shape.ROOT and "/" not in path and is_temporary(path):
            return True  # it may become one of the root's files: safetensors renames before it closes
        return self.rules.member_of(path) == unit

    def _touch(self, unit: Unit, *processes: int) -> Draft:
        draft = self.drafts.get(unit)
        if draft is None:
            draft = self.drafts[unit] = Draft(unit, self.clock())
        draft.changed(self.clock(), processes)
        for process in processes:
            self.watch(process)
        return draft

    def arrived(self, path: str, task: int) -> None:
        """A file got a name, by a link or a rename, with all its bytes unless it is still open."""
        unit = self.rules.unit_of(path)
        if unit is not None:
            draft = self._touch(unit, process_of(task))
            if not any(file.path == path for file in self._open):
                draft.closed(self.clock(), _below(unit, path))
        self.wake()

    def _directory_renamed(self, old: str, new: str, task: int) -> None:
        for unit in [u for u in self.drafts if u.name == old or u.name.startswith(old + "/")]:
            del self.drafts[unit]
        for unit in self.tree.units_below(new):
            draft = self._touch(unit, process_of(task))
            draft.closed(self.clock(), "")
            draft.renamed_into_place = unit.shape is Shape.DIRECTORY
        self.wake()

    def _may_be_lost(self, draft: Draft, rewritten: bool) -> bool:
        return policy.may_be_lost(draft.view(self), self.clock(), self._periods, rewritten=rewritten)

    def _lost(self, unit: Unit, path: str) -> None:
        draft = self.drafts.get(unit)
        if draft is None:
            return
        if not self.tree.scan(unit).files:
            del self.drafts[unit]
            return
        draft.lost(self.clock(), marker=is_temporary(path) or path.endswith(_UNFINISHED))

    def _hint_others(self, unit: Unit, process: int) -> None:
        for other, draft in self.drafts.items():
            if other != unit and process in draft.processes:
                draft.hinted = True

    def pointed(self, target: str) -> None:
        """A symlink or a `latest` file names `target`: that is done."""
        name = target.strip().rstrip("/").rpartition("/")[2]
        for unit, draft in self.drafts.items():
            if name and unit.name.rpartition("/")[2] == name:
                draft.hinted = True
        self.wake()


def _below(unit: Unit, path: str) -> str:
    return path[len(unit.prefix) + 1 :] if unit.prefix else path
