"""`--durability close`: a close that returns only when the file, and its names, survive a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator

import trio

from fuse_ckpt.vfs.handles import Handle
from fuse_ckpt.vfs.inodes import ROOT, WorkInode


async def sync(handle: Handle, *, data_only: bool) -> None:
    """Sync the bytes of an open file, as its program asks. Raises OSError; then what becomes of it is `failed`.

    After an error of the disk no later fsync tells the truth about the file: the kernel drops what it could not write,
    and tells that once.
    """
    try:
        await trio.to_thread.run_sync(os.fdatasync if data_only else os.fsync, handle.fd)
    except OSError as exc:
        handle.unsafe = f"its fsync failed: {exc.strerror}"
        raise


async def make_durable(handle: Handle) -> None:
    """Sync the bytes of an open file, then each directory on the way to it.

    Raises OSError, which close(2) hands to the program; what becomes of the file is `failed` then, see `sync`.
    """
    directories = [
        os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=one.descriptor) for one in _above(handle.inode)
    ]
    try:
        await trio.to_thread.run_sync(_sync, handle.fd, directories)
    except OSError as exc:
        handle.unsafe = f"its close failed: {exc.strerror}"
        raise
    finally:
        for fd in directories:
            os.close(fd)


def _sync(fd: int, directories: list[int]) -> None:
    os.fdatasync(fd)
    for directory in directories:
        os.fsync(directory)


def _above(inode: WorkInode) -> Iterator[WorkInode]:
    """The directories of a file's known names, up to the root, each once; none where the last name has gone."""
    seen: set[int] = set()
    waiting = [parent for parent, _ in inode.names]
    while waiting:
        one = waiting.pop()
        if one.nid not in seen:
            seen.add(one.nid)
            yield one
            waiting += [] if one.nid == ROOT else [parent for parent, _ in one.names]
