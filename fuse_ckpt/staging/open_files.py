"""The files that are open for writing, by inode, under the names that they have now, and the units that they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from fuse_ckpt.model import InodeKey, Unit


class OpenFile:
    """An inode that is open for writing, under the name that it has now (None: it has none any more)."""

    def __init__(self, key: InodeKey, path: str, unit: Unit | None) -> None:
        self.key = key
        self.path: str | None = path
        self.unit = unit  # the unit that waits for it
        self.handles = 0
        self.processes: set[int] = set()  # that opened it
        self.gone: set[int] = set()  # those of them that have exited
        self.death: str | None = None  # how one of them died
        self.made = False  # created or emptied since it is open: not changed in place
        self.counted = True  # False: whoever holds it has done nothing for so long that it counts as closed
        self.left_as: tuple[int, int] | None = None  # its size and mtime (ns) then

    @property
    def is_orphan(self) -> bool:
        """Whether all who opened it have exited: a child of theirs may have inherited it, and not know of it."""
        return self.processes == self.gone


class OpenFiles:
    """All of them; and how the writer died of each file that nothing but that closed.

    `unit_of`: the unit that waits for an open file at that path. `altered` is called with each unit that has more or
    fewer of them.
    """

    def __init__(self, unit_of: Callable[[str], Unit | None], altered: Callable[[Unit], None]) -> None:
        self._unit_of = unit_of
        self._altered = altered
        self._files: dict[InodeKey, OpenFile] = {}
        self._in: Counter[Unit] = Counter()
        self._deaths: dict[InodeKey, str] = {}

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(self._files.values())

    def __contains__(self, key: InodeKey) -> bool:
        return key in self._files

    def keys(self) -> frozenset[InodeKey]:
        return frozenset(self._files)

    def left_open(self) -> frozenset[InodeKey]:
        """Those that count as closed, although somebody can still write them."""
        return frozenset(file.key for file in tuple(self._files.values()) if not file.counted)

    def count_in(self, unit: Unit) -> int:
        """How many files of a unit are open, those under temporary names with them."""
        return self._in.get(unit, 0)

    def is_held_by(self, unit: Unit, process: int) -> bool:
        """Whether a file that the unit waits for was opened by that process and is open still."""
        return any(file.unit == unit and process in file.processes for file in self)

    def is_open(self, path: str) -> bool:
        return any(file.path == path for file in self)

    def opened(self, path: str, key: InodeKey, process: int, *, changed: bool) -> None:
        """One handle more; `changed`: the file is new, or empty now."""
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = OpenFile(key, path, self._unit_of(path))
            self._count(file, 1)
        self.count(file)
        file.handles += 1
        file.processes.add(process)
        file.gone.discard(process)
        if changed:
            file.made = True
            self._deaths.pop(key, None)

    def released(self, key: InodeKey, *, changed: bool, death: str | None) -> OpenFile | None:
        """One handle less; returns what it was a handle of."""
        file = self._files.get(key)
        if file is None:
            return None
        file.handles -= 1
        if file.handles == 0:
            if file.counted:
                self._count(file, -1)
            del self._files[key]
        if changed and death is not None:
            self._deaths[key] = death
        elif changed:
            self._deaths.pop(key, None)
        return file

    def exited(self, process: int, death: str | None) -> Iterator[OpenFile]:
        """A process is no more; yields the files that nobody is left of who opened them."""
        for file in list(self):
            if process in file.processes:
                file.gone.add(process)
                file.death = file.death or death
                if file.is_orphan:
                    yield file

    def discount(self, file: OpenFile) -> None:
        """It counts as closed from now on, by the death of its writer if that died."""
        if file.counted and self._files.get(file.key) is file:
            self._count(file, -1)
            file.counted = False
            if file.death is not None:
                self._deaths[file.key] = file.death

    def count(self, file: OpenFile) -> None:
        """It counts as open again."""
        if not file.counted:
            file.counted = True
            self._count(file, 1)

    def death_of(self, key: InodeKey) -> str | None:
        """How its writer died, if only that closed the file and nobody has written it anew."""
        return self._deaths.get(key)

    def renamed(self, old: str, new: str) -> None:
        for file in self:
            path = file.path
            if path == new:  # replaced
                self._place(file, None)
            elif path == old:
                self._place(file, new)
            elif path is not None and path.startswith(old + "/"):
                self._place(file, new + path[len(old) :])

    def exchanged(self, one: str, other: str) -> None:
        for file in self:
            path = file.path
            for here, there in ((one, other), (other, one)):
                if path is not None and (path == here or path.startswith(here + "/")):
                    self._place(file, there + path[len(here) :])

    def removed(self, path: str) -> None:
        for file in self:
            if file.path == path:
                self._place(file, None)

    def _place(self, file: OpenFile, path: str | None) -> None:
        if file.counted:
            self._count(file, -1)
        file.path = path
        file.unit = None if path is None else self._unit_of(path)
        if file.counted:
            self._count(file, 1)

    def _count(self, file: OpenFile, by: int) -> None:
        if file.unit is not None:
            self._in[file.unit] += by
            if self._in[file.unit] == 0:
                del self._in[file.unit]
            self._altered(file.unit)
