"""The part of the store that ends jobs: takes a job away, or the names that its working tree still has for what the
store keeps."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from uuid import uuid4

from msgspec import Struct

from fuse_ckpt.faults import fault
from fuse_ckpt.model import InodeKey, Kind, Manifest, State

from .accounts import BLOCK
from .blobs import digest_of, stat_or_none
from .collection import Collection
from .records import Records


class WorkFile(Struct, frozen=True):
    """A file, or a symlink, of a working tree; `path` is relative to the tree's root."""

    path: str
    size: int
    disk: int  # bytes that come free with this name
    kept: bool  # a checkpoint holds the same bytes under this path, or held them until it was deleted


class Ending(Collection):
    """Ending jobs; see `Store` for what all methods have in common."""

    def delete_job(self, name: str) -> None:
        """Move a job's checkpoints to the trash, all or none, and remove its working tree, pending drafts and runs.

        Errors: UnknownJob, JobMounted, CheckpointLeased, CheckpointPinned; then all is as it was.
        """
        self.job(name)
        with self.lock_job(name) as lock:
            briefs = self._index.read(lambda records: list(records.briefs(name)))
            self.delete([one for one, brief in briefs if brief.state is not State.DELETED])
            fault("ending:rename")
            away = self.layout.tmp / uuid4().hex
            with suppress(FileNotFoundError):  # an earlier attempt was cut off here
                os.rename(self.layout.job(name), away)
            fault("ending:record")
            self._index.write(lambda records: records.drop_job(name))
            fault("ending:remove")
            shutil.rmtree(away, ignore_errors=True)  # recover takes what is left
            for place in (self.layout.output_mount(name), self.layout.input_mount(name)):
                with suppress(OSError):
                    place.rmdir()
                    place.parent.rmdir()
            lock.path.unlink(missing_ok=True)

    def work_files(self, job: str) -> list[WorkFile]:
        """The files of a job's working tree, by path. Errors: UnknownJob."""
        self.job(job)
        known = _Known(self._manifests(job))
        known.left = self._index.read(lambda records: records.all_left(job))
        try:
            root = os.open(self.layout.work(job), os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return []
        try:
            return [self._judged(root, path, known) for path in sorted(_files(root))]
        finally:
            os.close(root)

    def release_work(self, job: str, files: Iterable[WorkFile]) -> None:
        """Remove these names from the working tree of a job that nobody has mounted, and directories that get empty.

        Belongs into `lock_job`.
        """
        root = os.open(self.layout.work(job), os.O_RDONLY | os.O_DIRECTORY)
        try:
            for file in files:
                with suppress(FileNotFoundError):
                    os.unlink(file.path, dir_fd=root)
            for where, *_ in os.fwalk(".", topdown=False, dir_fd=root):
                with suppress(OSError):  # not empty, or the root
                    os.rmdir(where, dir_fd=root)
        finally:
            os.close(root)

    def _manifests(self, job: str) -> list[Manifest]:
        def work(records: Records) -> list[Manifest | None]:
            return [records.manifest(one, deleted=True) for one, _ in records.briefs(job)]

        return [one for one in self._index.read(work) if one is not None]

    def _judged(self, root: int, path: str, known: _Known) -> WorkFile:
        status = os.stat(path, dir_fd=root, follow_symlinks=False)
        size = status.st_blocks * BLOCK if status.st_nlink == 1 else 0
        if stat.S_ISLNK(status.st_mode):
            return WorkFile(path, 0, size, os.readlink(path, dir_fd=root) in known.targets.get(path, ()))
        kept = stat.S_ISREG(status.st_mode) and self._is_kept(root, path, status, known)
        return WorkFile(path, status.st_size, size, kept)

    def _is_kept(self, root: int, path: str, status: os.stat_result, known: _Known) -> bool:
        digest = self._index.read(lambda records: records.digest_of(InodeKey(status.st_dev, status.st_ino)))
        blob = stat_or_none(self.layout.blob(digest)) if digest is not None and digest in known.digests else None
        if blob is not None and os.path.samestat(blob, status):
            return True
        if (path, status.st_size, status.st_mtime_ns) in known.left:
            return True
        alike = known.copies.get((path, status.st_size), set())
        if not alike:
            return False
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=root)
        try:
            return digest_of(fd) in alike
        finally:
            os.close(fd)


class _Known:
    """What the checkpoints of a job hold, deleted ones too, under their paths in the working tree."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self.digests: set[str] = set()
        self.copies: dict[tuple[str, int], set[str]] = {}  # (path, size) → digests
        self.targets: dict[str, set[str]] = {}  # of symlinks
        self.left: set[tuple[str, int, int]] = set()  # (path, size, mtime) of collected ones
        for manifest in manifests:
            prefix = manifest.checkpoint.unit.prefix
            places = ((f"{prefix}/{entry.path}" if prefix else entry.path, entry) for entry in manifest.entries)
            for path, entry in (*places, *((entry.path, entry) for entry in manifest.companions)):
                if entry.kind is Kind.SYMLINK:
                    self.targets.setdefault(path, set()).add(entry.target)
                elif entry.kind is Kind.FILE:
                    self.digests.add(entry.digest)
                    self.copies.setdefault((path, entry.size), set()).add(entry.digest)


def _files(root: int) -> Iterator[str]:
    """Everything below a directory but directories, without following a symlink."""
    for where, directories, files, fd in os.fwalk(".", dir_fd=root):
        head = where.removeprefix("./").removeprefix(".")
        links = [name for name in directories if stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)]
        yield from (f"{head}/{name}" if head else name for name in (*files, *links))
