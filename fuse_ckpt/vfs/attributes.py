"""What the filesystem tells of a file, and of who asks, in plain values that know nothing of FUSE."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(slots=True)
class Attributes:
    """An inode's attributes and how long, in seconds, the kernel may remember the name and them."""

    nid: int
    mode: int  # type and permission bits
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    atime_ns: int
    ctime_ns: int
    rdev: int = 0
    blksize: int = 4096
    blocks: int = 0  # of 512 bytes
    entry_timeout: float = 0.0
    attr_timeout: float = 0.0


@dataclass(slots=True, frozen=True)
class Caller:
    """The process that makes a system call. `task`: its thread's id in our pid namespace, 0 if it is not in it."""

    uid: int
    gid: int
    task: int


@dataclass(slots=True)
class Changes:
    """What setattr is to change; None: leave it."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(slots=True)
class Listing:
    """An open directory: names are read once at the start, so that removals while reading shift nothing."""

    nid: int
    names: list[bytes] = field(default_factory=list)
    filled: bool = False


def of_status(
    nid: int, status: os.stat_result, hidden_links: int, attr_timeout: float, entry_timeout: float
) -> Attributes:
    """Attributes from a stat(2) of the backing file; `hidden_links` of its links are the store's own."""
    return Attributes(
        nid=nid,
        mode=status.st_mode,
        nlink=max(status.st_nlink - hidden_links, 0),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        atime_ns=status.st_atime_ns,
        ctime_ns=status.st_ctime_ns,
        rdev=status.st_rdev,
        blksize=status.st_blksize,
        blocks=status.st_blocks,
        entry_timeout=entry_timeout,
        attr_timeout=attr_timeout,
    )
