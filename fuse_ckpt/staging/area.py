"""The staging area: which drafts are growing in the working tree, and which of its inodes may never be written again.

The filesystem reports what happened, in the order in which it happened, and asks two questions: is this inode sealed,
and may this be destroyed. Everything here is synchronous, so each report is one step: nothing can come between a look
at the tree and the seal that follows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fuse_ckpt.model import InodeKey, Kind, Shape, Unit
from fuse_ckpt.staging import journal, policy, validate
from fuse_ckpt.staging.drafts import Draft, OpenFile
from fuse_ckpt.staging.journal import Journal, Sealed
from fuse_ckpt.staging.processes import process_of
from fuse_ckpt.staging.sealed import SealedInodes
from fuse_ckpt.staging.settings import Settings
from fuse_ckpt.staging.units import UnitRules, is_companion, is_temporary
from fuse_ckpt.staging.worktree import Found, Scan, WorkTree

LARGEST_POINTER = 4096  # bytes; a `latest` file names a directory


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
        self._settings = settings
        self._periods = settings.periods
        self._open: dict[InodeKey, OpenFile] = {}
        self.sealed = SealedInodes()
        self._gone: set[int] = set()  # writers that have exited

    # -- sealed drafts ------------------------------------------------------------------------------------------------

    def add_sealed(self, sealed: Sealed) -> None:
        """Queue a sealed draft: one just made, or one that an earlier mount left."""
        self.sealed.add(sealed)
        self.queue.append(sealed)
        self.wake()

    # -- what happens in the output directory -------------------------------------------------------------------------

    def opened(self, path: str, key: InodeKey, task: int, *, changed: bool) -> None:
        """A file was opened for writing; `changed`: created or truncated by that."""
        process = process_of(task)
        file = self._open.setdefault(key, OpenFile(path))
        file.handles += 1
        file.processes.add(process)
        self._gone.discard(process)
        unit = self.rules.member_of(path)
        if unit is None:
            return
        if changed and (self.rules.unit_of(path) is not None or unit in self.drafts):
            self._touch(unit, process)
        self._hint_others(unit, process)

    def released(self, key: InodeKey, *, changed: bool, names: Iterable[str] = ()) -> None:
        """The last close of one open file description. `changed`: its bytes are not those before it was opened.

        `names`: all that are known of it where there are several, since each may belong to another unit.
        """
        file = self._open.get(key)
        if file is None:
            return
        file.handles -= 1
        if file.handles == 0:
            del self._open[key]
        if file.path is None:
            self.wake()
            return
        for path in {file.path, *names} if changed else ():
            unit = self.rules.unit_of(path)
            if unit is not None:
                self._touch(unit, *file.processes).closed(self.clock(), _below(unit, path))
            elif is_companion(path):
                self._hint_named(self._pointer(path))
        self.wake()

    def renamed(self, old: str, new: str, task: int, *, directory: bool) -> None:
        """`old` is `new` now, and whatever `new` was has gone."""
        for file in self._open.values():
            file.renamed(old, new)
        if directory:
            self._directory_renamed(old, new, task)
            return
        left = self.rules.member_of(old)
        if left is not None and left != self.rules.unit_of(new):
            self._drop_if_empty(left)
        self._arrived(new, task)

    def exchanged(self, one: str, other: str, task: int) -> None:
        """Two names were swapped (renameat2, RENAME_EXCHANGE)."""
        for file in self._open.values():
            file.exchanged(one, other)
        for path in (one, other):
            found = self.tree.look(path)
            if found is not None and found.kind is Kind.DIRECTORY:
                self._directory_renamed(path, path, task)
            else:
                self._arrived(path, task)

    def removed(self, path: str, task: int) -> None:
        """A name has gone."""
        for file in self._open.values():
            file.removed(path)
        unit = self.rules.member_of(path)
        if unit is not None and self.drafts:
            self._drop_if_empty(unit)
            self._hint_others(unit, process_of(task))
        self.wake()

    def linked(self, path: str, task: int) -> None:
        """A hard link `path` to a file that exists: a member by its own name."""
        self._arrived(path, task)

    def pointed(self, target: str) -> None:
        """A symlink to `target` was made: whatever it names is done."""
        self._hint_named(target)

    def exited(self, process: int) -> None:
        self._gone.add(process)
        self.wake()

    def about_to_lose(self, path: str, *, rewritten: bool) -> None:
        """Called before a name or its bytes are destroyed: seals the unit first if it is complete and not committed.

        `rewritten`: by truncation, or by a rename over it, which may be part of the same save; else by removal.
        """
        unit = self.rules.unit_of(path)
        draft = self.drafts.get(unit) if unit is not None else None
        if unit is None or draft is None or not self._may_be_lost(draft, rewritten):
            return
        if draft.incomplete_at == draft.version or self.tree.look(path) is None:
            return
        scan, fault = self.inspect(unit)
        if fault is not None or not scan.files:
            draft.incomplete_at = draft.version
            return
        self.seal(unit, scan, None)

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
            and (draft.incomplete_at != draft.version or self.is_over(unit))
        ]
        return min(times, key=lambda pair: pair[0], default=None)

    def is_over(self, unit: Unit) -> bool:
        """Whether nobody is left who would finish the unit: it is committed as it is, whole or `failed`."""
        view = self.drafts[unit].view(self)
        return view.finishing or (view.live_writers is False and not view.open_writers)

    def finish(self) -> None:
        """Nothing more will be written: every draft without an open writer is due."""
        for draft in self.drafts.values():
            draft.finishing = True
        self.wake()

    def inspect(self, unit: Unit) -> tuple[Scan, str | None]:
        """The unit as it lies in the tree, and what it lacks to be whole. Reads a little of each file."""
        scan = self.tree.scan(unit, frozenset(self._open))
        if scan.temporary:
            return scan, f"a temporary file is left in it: {scan.temporary[0]}"
        return scan, validate.fault_of(self.tree.root_fd, [found.path for found in scan.files])

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
        return (f for f in self._open.values() if f.path is not None and self._is_part_of(f.path, unit))

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

    def _arrived(self, path: str, task: int) -> None:
        """A file got its name, with all its bytes unless it is still open."""
        unit = self.rules.unit_of(path)
        if unit is not None:
            draft = self._touch(unit, process_of(task))
            if not any(file.path == path for file in self._open.values()):
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

    def _drop_if_empty(self, unit: Unit) -> None:
        if unit in self.drafts and not any(f.kind is Kind.FILE for f in self.tree.scan(unit).members):
            del self.drafts[unit]

    def _hint_others(self, unit: Unit, process: int) -> None:
        for other, draft in self.drafts.items():
            if other != unit and process in draft.processes:
                draft.hinted = True

    def _hint_named(self, target: str) -> None:
        name = target.strip().rstrip("/").rpartition("/")[2]
        for unit, draft in self.drafts.items():
            if name and unit.name.rpartition("/")[2] == name:
                draft.hinted = True
        self.wake()

    def _pointer(self, path: str) -> str:
        found = self.tree.look(path)
        if found is None or found.kind is not Kind.FILE or found.size > LARGEST_POINTER:
            return ""
        return self.tree.text(path, LARGEST_POINTER)


def _below(unit: Unit, path: str) -> str:
    return path[len(unit.prefix) + 1 :] if unit.prefix else path
