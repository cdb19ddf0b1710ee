"""The files that are open for writing, by inode, under the names that they have now."""

from __future__ import annotations

from collections.abc import Iterator

from fuse_ckpt.model import InodeKey


class OpenFile:
    """An inode that is open for writing, under the name that it has now (None: it has none any more)."""

    def __init__(self, path: str) -> None:
        self.path: str | None = path
        self.handles = 0
        self.processes: set[int] = set()

    def renamed(self, old: str, new: str) -> None:
        if self.path == new:  # replaced
            self.path = None
        elif self.path == old:
            self.path = new
        elif self.path is not None and self.path.startswith(old + "/"):
            self.path = new + self.path[len(old) :]

    def exchanged(self, one: str, other: str) -> None:
        path = self.path
        if path is None:
            return
        for here, there in ((one, other), (other, one)):
            if path == here or path.startswith(here + "/"):
                self.path = there + path[len(here) :]

    def removed(self, path: str) -> None:
        if self.path == path:
            self.path = None


class OpenFiles:
    """All of them; and how the writer died of each file that nothing but that closed."""

    def __init__(self) -> None:
        self._files: dict[InodeKey, OpenFile] = {}
        self._deaths: dict[InodeKey, str] = {}

    def __iter__(self) -> Iterator[OpenFile]:
        return iter(self._files.values())

    def keys(self) -> frozenset[InodeKey]:
        return frozenset(self._files)

    def opened(self, path: str, key: InodeKey, process: int, *, changed: bool) -> None:
        """One handle more; `changed`: the file is new, or empty now."""
        file = self._files.setdefault(key, OpenFile(path))
        file.handles += 1
        file.processes.add(process)
        if changed:
            self._deaths.pop(key, None)

    def released(self, key: InodeKey, *, changed: bool, death: str | None) -> OpenFile | None:
        """One handle less; returns what it was a handle of."""
        file = self._files.get(key)
        if file is None:
            return None
        file.handles -= 1
        if file.handles == 0:
            del self._files[key]
        if changed and death is not None:
            self._deaths[key] = death
        elif changed:
            self._deaths.pop(key, None)
        return file

    def death_of(self, key: InodeKey) -> str | None:
        """How its writer died, if only that closed the file and nobody has written it anew."""
        return self._deaths.get(key)

    def renamed(self, old: str, new: str) -> None:
        for file in self:
            file.renamed(old, new)

    def exchanged(self, one: str, other: str) -> None:
        for file in self:
            file.exchanged(one, other)

    def removed(self, path: str) -> None:
        for file in self:
            file.removed(path)
