"""The two filesystems that can be mounted, put together."""

from __future__ import annotations

import os
from collections.abc import Callable

from fuse_ckpt.staging import Area
from fuse_ckpt.store import Store, Uses
from fuse_ckpt.vfs.files import WorkFiles
from fuse_ckpt.vfs.filesystem import Filesystem
from fuse_ckpt.vfs.inodes import InodeTable
from fuse_ckpt.vfs.output import OutputTree
from fuse_ckpt.vfs.views import Fetch, Views


def job_filesystem(
    store: Store,
    job: str,
    root_fd: int,
    area: Area,
    uses: Uses,
    forget_name: Callable[[int, bytes], None],
    *,
    show: bool = False,
    also: str | None = None,
    durable: bool = False,
    fetch: Fetch | None = None,
) -> Filesystem:
    """A job's output directory with its checkpoints, and `also` one of another job, its input.

    `forget_name(node id, name)` makes the kernel look a name up again; `uses` is told which checkpoints the kernel
    knows; `show` lists `.checkpoints` in the root; with `durable` a close waits for the disk; `fetch` brings bytes that
    are elsewhere. `root_fd` and `uses` stay the caller's.
    """
    table = InodeTable()
    output = OutputTree(table, root_fd, area, forget_name)
    files = WorkFiles(output, str(store.layout.job(job)), forget_name, durable)
    views = Views(table, store, uses, forget_name, os.geteuid(), os.getegid(), also, fetch)
    return Filesystem(table, views, output, files, job=job, disk_fd=root_fd, show_checkpoints=show)


def browse_filesystem(
    store: Store,
    disk_fd: int,
    uses: Uses,
    forget_name: Callable[[int, bytes], None],
    *,
    fetch: Fetch | None = None,
) -> Filesystem:
    """Every job's checkpoints, read-only, by job; `fetch` as above."""
    table = InodeTable()
    views = Views(table, store, uses, forget_name, os.geteuid(), os.getegid(), fetch=fetch)
    return Filesystem(table, views, None, None, job=None, disk_fd=disk_fd)
