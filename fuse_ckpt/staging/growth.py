"""How drafts grow: what the filesystem reports of the output directory, in the order in which it happened."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from fuse_ckpt.model import InodeKey, Kind, Shape, Unit
from fuse_ckpt.staging import policy
from fuse_ckpt.staging.doubts import Doubts
from fuse_ckpt.staging.drafts import Draft, Drafts
from fuse_ckpt.staging.open_files import OpenFile, OpenFiles
from fuse_ckpt.staging.orphans import Orphans
from fuse_ckpt.staging.policy import QuietPeriods
from fuse_ckpt.staging.processes import process_of
from fuse_ckpt.staging.recent import RecentDrafts
from fuse_ckpt.staging.units import CARD, ROOT_UNIT, UnitRules, is_companion, is_mark, is_temporary, mark_of
from fuse_ckpt.staging.worktree import WorkTree

_REMEMBERED = 1024  # units whose file is changed in place again and again
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


class Growth:
    """The drafts of one job's working tree, and the files that are open in it. `clock` is monotonic, in seconds.

    `wake` is called when a decision may have become due, `watch` with each process that writes; the committer sets
    both.
    """

    def __init__(self, tree: WorkTree, rules: UnitRules, periods: QuietPeriods, clock: Callable[[], float]) -> None:
        self.tree = tree
        self.rules = rules
        self.clock = clock
        self.wake: Callable[[], None] = lambda: None
        self.watch: Callable[[int], None] = lambda process: None
        self.drafts = Drafts(periods, lambda unit: self._open.count_in(unit))
        self._open = OpenFiles(self._held_by, self.drafts.altered)
        self.doubts = Doubts(tree)
        self.orphans = Orphans(tree)
        self.recent = RecentDrafts()
        self.unwritten: dict[InodeKey, str] = {}  # what the disk could not do with them: no later fsync can be trusted
        self._appends: Counter[Unit] = Counter()

    def opened(self, path: str, key: InodeKey, task: int, *, changed: bool) -> int:
        """A file was opened for writing; `changed`: created or truncated by that. Returns the writer's process."""
        process = process_of(task)
        self._open.opened(path, key, process, changed=changed)
        if changed:
            self.unwritten.pop(key, None)
        unit = self.rules.member_of(path)
        if unit is None:
            return process
        if unit in self.drafts:
            self.drafts[unit].version += 1  # what a thread sees of it just now may be wrong in a moment
        if changed and (unit in self.drafts or self._started_by(path) is not None):
            self._touch(unit, process)
        self.watch(process)
        self._hint_others(unit, process)
        return process

    def released(self, key: InodeKey, *, changed: bool, death: str | None = None, names: Iterable[str] = ()) -> None:
        """The last close of one open file description. `changed`: its bytes are not those before it was opened.

        `death`: how its writer died, where only that closed it. `names`: all that it has, since each may belong to
        another unit; the one that it was opened by may have gone.
        """
        file = self._open.released(key, changed=changed, death=death)
        if file is None:
            return
        if not file.counted and self.orphans.state(file) == file.left_as:
            changed = False  # what it is now was taken when it was given up
        paths = {*names} if file.path is None else {file.path, *names}
        for path in paths if changed else ():
            unit = self._started_by(path)
            if unit is not None:
                self._note_append(unit, in_place=not file.made)
                draft = self._touch(unit, *file.processes - file.gone)
                draft.exited = max(draft.exited, min(len(file.gone), 2))
                draft.closed(self.clock(), _below(unit, path))
            elif is_companion(path):
                self.pointed(self.tree.pointer(path))
        self._judge_deaths()
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
        if is_mark(old):
            self._unmarked(old)
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
        if is_mark(path):
            self._unmarked(path)
        self.wake()

    def exited(self, process: int, death: str | None = None) -> None:
        """A writer is no more; `death`: how it died, if not by its own will."""
        for file in self._open.exited(process, death):
            self.orphans.add(file, self.clock())
        for unit, draft in self.drafts.items():
            if process in draft.writers:
                draft.lost_writer(process, death)
                self.drafts.altered(unit)
        self._judge_deaths()
        self.wake()

    def left_open(self, file: OpenFile) -> None:
        """Nobody has written an open file for long, and nobody is left who opened it: it counts as closed."""
        file.left_as = self.orphans.state(file)
        self._open.discount(file)
        unit = None if file.path is None else self._started_by(file.path)
        if unit is not None and file.path is not None:
            self._touch(unit).closed(self.clock(), _below(unit, file.path))
        self.wake()

    def arrived(self, path: str, task: int) -> None:
        """A file got a name, by a link or a rename, with all its bytes unless it is still open."""
        unit = self._started_by(path)
        if unit is not None:
            self._note_append(unit, in_place=False)
            draft = self._touch(unit, process_of(task))
            if not self._open.is_open(path):
                draft.closed(self.clock(), _below(unit, path))
        self.wake()

    def pointed(self, target: str) -> None:
        """A symlink or a `latest` file names `target`: that is done."""
        name = target.strip().rstrip("/").rpartition("/")[2]
        for unit, draft in self.drafts.items():
            if name and _is_named(unit.name.rpartition("/")[2], name):
                draft.hinted = True
                self.drafts.altered(unit)
        self.wake()

    def _started_by(self, path: str) -> Unit | None:
        """The unit that a closed file at `path` starts or adds to."""
        unit = self.rules.unit_of(path)
        if unit is None and (ROOT_UNIT in self.drafts or self.recent.lacks(ROOT_UNIT, path, self.clock())):
            return ROOT_UNIT if path == CARD else None
        return unit

    def _held_by(self, path: str) -> Unit | None:
        """The unit that waits for an open file at `path`."""
        if "/" not in path and is_temporary(path):
            return ROOT_UNIT  # it may become one of the root's files: safetensors renames before it closes
        return self.rules.member_of(path)

    def _touch(self, unit: Unit, *processes: int) -> Draft:
        draft = self.drafts.get(unit)
        if draft is None:
            draft = self.drafts.begin(unit, self.clock(), self.recent.of(unit, self.clock()))
        draft.changed(self.clock(), processes)
        draft.appends = self._appends[unit]
        self.drafts.altered(unit)
        for process in processes:
            self.watch(process)
        return draft

    def _judge_deaths(self) -> None:
        """Whether a writer that was killed had more to write: told by what it closed last, once its closes are heard.

        The kernel tells of a last close after close() has returned; by then its program may have died.
        """
        for unit, draft in self.drafts.items():
            for process in [one for one in draft.deaths if not self._open.is_held_by(unit, one)]:
                death = draft.deaths.pop(process)
                if policy.may_lack_members(self.drafts.view(draft)):
                    draft.abandoned = draft.abandoned or death

    def _note_append(self, unit: Unit, *, in_place: bool) -> None:
        if not in_place:
            self._appends.pop(unit, None)
            return
        if len(self._appends) >= _REMEMBERED:
            self._appends.clear()
        self._appends[unit] += 1

    def _directory_renamed(self, old: str, new: str, task: int) -> None:
        left = self.rules.unit_of(f"{old}/file")
        if left is not None and left.name != old and left != self.rules.unit_of(f"{new}/file"):
            self._lost(left, old)
        for unit in [u for u in self.drafts if u.name == old or u.name.startswith(old + "/")]:
            self.drafts.drop(unit)
        for unit in self.tree.units_below(new):
            draft = self._touch(unit, process_of(task))
            draft.closed(self.clock(), "")
            whole = unit.name == new or unit.name.startswith(new + "/")  # else it is a part of one that is not finished
            draft.renamed_into_place = unit.shape is Shape.DIRECTORY and whole
        self.wake()

    def _lost(self, unit: Unit, path: str) -> None:
        draft = self.drafts.get(unit)
        if draft is None:
            return
        if self.tree.has_files(unit):
            draft.lost(self.clock(), marker=is_temporary(path) or draft.fault.startswith(path))
            self.drafts.altered(unit)
        else:
            self.drafts.drop(unit)

    def _unmarked(self, mark: str) -> None:
        """The mark beside a unit has gone that said that it was not finished."""
        for unit, draft in self.drafts.items():
            if mark_of(unit) == mark:
                draft.lost(self.clock(), marker=True)
                draft.unmarked = True
                self.drafts.altered(unit)

    def _hint_others(self, unit: Unit, process: int) -> None:
        for other, draft in self.drafts.items():
            if other != unit and process in draft.writers and not draft.hinted:
                draft.hinted = True
                self.drafts.altered(other)


def _below(unit: Unit, path: str) -> str:
    return path[len(unit.prefix) + 1 :] if unit.prefix else path


def _is_named(last: str, pointer: str) -> bool:
    """Whether a pointer's text means the unit whose name's last part is `last`: Megatron's gives the number alone."""
    if last == pointer:
        return True
    numbers = _NUMBER.findall(last) if _NUMBER.fullmatch(pointer) else []
    return bool(numbers) and int(numbers[-1]) == int(pointer)
