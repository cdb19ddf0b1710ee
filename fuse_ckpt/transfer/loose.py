"""Copy out of a working tree what is in no checkpoint: logs, above all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from fuse_ckpt.errors import UsageError
from fuse_ckpt.store import Store, WorkFile
from fuse_ckpt.transfer import places, tree
from fuse_ckpt.transfer.fetch import Fetched

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def fetch_loose(store: Store, job: str, destination: Path) -> Fetched:
    """Copy the files of a job's working tree that no checkpoint holds into `destination`, with their times and modes.

    `destination` must be absent or empty; it is there once all files are. A file that is being written is copied as far
    as it is. What is there at the end is on the disk. Raises UsageError (destination in use, in a mount of ours or in
    the store), FuseCkptError (no room), UnknownJob and OSError.
    """
    if os.path.lexists(destination) and (not destination.is_dir() or os.listdir(destination)):
        raise UsageError(f"{destination} is there already and not an empty directory: choose another --destination.")
    places.refuse_ours(destination, store.layout.root, "--destination")
    files = [file for file in store.work_files(job) if not file.kept]
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.parent / f".{job}.partial-{os.getpid()}"
    partial.mkdir(mode=0o700)
    try:
        with places.told_where_full(str(destination), "make room, or choose another --destination"):
            copied = _copy_all(store.layout.work(job), files, partial)
            partial.chmod(0o755)
            tree.sync_disk(partial)  # who has them is about to remove them from the store
        partial.rename(destination)
        tree.sync_path(destination.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Fetched(destination, len(copied), sum(file.size for file in copied))


def _copy_all(work: Path, files: Sequence[WorkFile], target: Path) -> list[WorkFile]:
    copied = []
    root = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if files else -1
    try:
        for file in files:
            place = target / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if _copy(root, file.path, place):
                copied.append(file)
    finally:
        if root >= 0:
            os.close(root)
    return copied


def _copy(root: int, path: str, place: Path) -> bool:
    """Copy one file or symlink; False for what is neither, or has gone meanwhile."""
    try:
        status = os.stat(path, dir_fd=root, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(path, dir_fd=root), place)
            return True
        if not stat.S_ISREG(status.st_mode):
            return False
        fd = os.open(path, _READ, dir_fd=root)
    except FileNotFoundError:
        return False
    with open(fd, "rb") as source, open(place, "xb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
        os.fchmod(copy.fileno(), stat.S_IMODE(status.st_mode) & 0o777 | stat.S_IRUSR)
    os.utime(place, ns=(status.st_mtime_ns, status.st_mtime_ns))
    return True
