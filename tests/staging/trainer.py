"""A fake of the filesystem above staging: does to a real working tree what training does, and reports it in order."""

from __future__ import annotations

import os
import stat
import zipfile
from io import BytesIO
from pathlib import Path

from fuse_ckpt.model import InodeKey, State
from fuse_ckpt.staging import Area, Settings
from fuse_ckpt.store import Store

ME = os.getpid()
OTHER = os.getppid()  # a process that lives as long as the test
UNSEEN = 0
JOB = "job"


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key_of(path: Path) -> InodeKey:
    status = path.lstat()
    return InodeKey(status.st_dev, status.st_ino)


def torch_zip(content: bytes = b"weights") -> bytes:
    """As little of a zip file as the check of a torch file asks for."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), content)  # a fixed date
    return buffer.getvalue()


class Trainer:
    """Training in a job's output directory. `task` is the process that acts, unless a call names another."""

    def __init__(self, store: Store, area: Area, work: Path, task: int = ME) -> None:
        self.store, self.area, self.work, self.task = store, area, work, task
        self._open: dict[str, tuple[int, InodeKey]] = {}

    def start(self, path: str, data: bytes = b"data", task: int | None = None) -> None:
        """Create `path` and write `data`, and leave it open."""
        target = self.work / path
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        key = key_of(target)
        self.area.sealed.created(key)
        self.area.opened(path, key, self.task if task is None else task, changed=True)
        os.write(fd, data)
        self._open[path] = fd, key

    def close(self, path: str, *, changed: bool = True, death: str | None = None) -> None:
        """Close what was opened as `path`, whatever its name is now."""
        fd, key = self._open.pop(path)
        os.close(fd)
        self.area.released(key, changed=changed, death=death)

    def save(self, path: str, data: bytes = b"data", task: int | None = None) -> None:
        self.start(path, data, task)
        self.close(path)

    def rewrite(self, path: str, data: bytes) -> None:
        """open(path, "wb"): an inode that is sealed is replaced, as the filesystem does."""
        self.area.about_to_lose(path, rewritten=True)
        target = self.work / path
        if key_of(target) in self.area.sealed:
            target.unlink()
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        key = key_of(target)
        self.area.opened(path, key, self.task, changed=True)
        os.write(fd, data)
        os.close(fd)
        self.area.released(key, changed=True)

    def mkdir(self, path: str) -> None:
        (self.work / path).mkdir()

    def rename(self, old: str, new: str) -> None:
        directory = stat.S_ISDIR((self.work / old).lstat().st_mode)
        self.area.about_to_move(old, new, directory=directory)
        if not directory:
            self.area.about_to_lose(new, rewritten=True)
        os.rename(self.work / old, self.work / new)
        self.area.renamed(old, new, self.task, directory=directory)

    def remove(self, path: str) -> None:
        self.area.about_to_lose(path, rewritten=False)
        (self.work / path).unlink()
        self.area.removed(path, self.task)

    def rmtree(self, path: str) -> None:
        for name in sorted(os.listdir(self.work / path)):
            below = f"{path}/{name}"
            self.rmtree(below) if (self.work / below).is_dir() else self.remove(below)
        (self.work / path).rmdir()
        self.area.removed(path, self.task)

    def link(self, old: str, new: str) -> None:
        os.link(self.work / old, self.work / new)
        self.area.arrived(new, self.task)

    def symlink(self, target: str, path: str) -> None:
        (self.work / path).symlink_to(target)
        self.area.pointed(target)

    # what came of it

    def due(self) -> dict[str, float]:
        """Unit → seconds until it is due, for the one that is due first."""
        found = self.area.due({})
        return {} if found is None else {found[1].name: round(found[0] - self.area.clock(), 6)}

    def queued(self) -> list[tuple[str, list[str]]]:
        """What is sealed: each unit's name with the paths of its files."""
        return [
            (one.journal.unit.name, [f.path for f in one.journal.files if f.link and not f.companion])
            for one in self.area.queue
        ]

    def checkpoints(self, state: State = State.AVAILABLE) -> dict[str, dict[str, bytes]]:
        """name@ordinal → path → bytes, of what the store lists."""
        found = {}
        for one in self.store.checkpoints(JOB, {state}):
            entries = self.store.manifest(one.id).entries
            files = {e.path: self.store.blob_path(e.digest).read_bytes() for e in entries if e.digest}
            found[f"{one.name}@{one.ordinal}"] = files
        return found


def new_area(store: Store, root_fd: int, clock: Clock, **settings: object) -> Area:
    return Area(root_fd, store.layout.pending(JOB), Settings(**settings), clock)  # type: ignore[arg-type]
