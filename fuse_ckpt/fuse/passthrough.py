"""Kernel passthrough: whether this machine can do it, and lending the kernel a backing file.

Since Linux 6.9 a server may answer an open with a backing file, and the kernel moves the data of that open file by
itself. It takes CAP_SYS_ADMIN in the initial user namespace, and a disk that is not stacked deeper than it allows.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import tempfile
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.errors import MountFailed
from fuse_ckpt.fuse import mount
from fuse_ckpt.fuse import protocol as p

_PATIENCE = 2.0  # seconds for the kernel's first request
_DEPTHS = (1, 2)  # of filesystems stacked below the mount; 2 where the store lies on overlayfs


class Verdict(Struct, frozen=True):
    """Whether files of a directory can be lent to the kernel. `depth` 0: they cannot; `reason` says why (not)."""

    depth: int
    reason: str


def probe(directory: Path) -> Verdict:
    """Try it on a mount of our own, below `directory`, which is gone again when this returns."""
    if not mount.may_mount():
        return Verdict(0, "this process has no CAP_SYS_ADMIN")
    reason = "the kernel refuses every depth"
    for depth in _DEPTHS:
        try:
            with tempfile.TemporaryDirectory(prefix="probe-", dir=directory) as place:
                _try(Path(place), depth)
            return Verdict(depth, "the kernel moves the data")
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                return Verdict(0, exc.strerror or str(exc))
            reason = f"the kernel refuses to take a file of the store: {exc.strerror}"
            if exc.errno != errno.ELOOP:
                break
        except MountFailed as exc:
            return Verdict(0, str(exc))
    return Verdict(0, reason)


def lend(device: int, fd: int) -> int:
    """Register the file behind `fd` with the mount of `device`; returns its backing id. Raises OSError."""
    backing_id: int = fcntl.ioctl(device, p.BACKING_OPEN, bytearray(p.BACKING_MAP.pack(fd, 0, 0)))
    return backing_id


def give_back(device: int, backing_id: int) -> None:
    """Have the kernel forget a backing id. Raises OSError."""
    fcntl.ioctl(device, p.BACKING_CLOSE, struct.pack("<I", backing_id))


def _try(place: Path, depth: int) -> None:
    device = mount.mount_device(place, place, allow_other=False, read_only=True)
    try:
        _shake_hands(device, depth)
        with tempfile.TemporaryFile(dir=place.parent) as sample:
            give_back(device, lend(device, sample.fileno()))
    finally:
        os.close(device)
        mount.detach(place, lazy=True)


def _shake_hands(device: int, depth: int) -> None:
    """Answer the kernel's INIT as a server that wants passthrough and nothing else."""
    asked = select.poll()  # select(2) takes no descriptor above 1023
    asked.register(device, select.POLLIN)
    if not asked.poll(_PATIENCE * 1000):
        raise OSError(errno.ETIMEDOUT, "the kernel does not ask")
    request = os.read(device, p.LARGEST_REQUEST)
    _, _, unique, *_ = p.IN_HEADER.unpack_from(request)
    major, minor, readahead, flags, flags2 = p.INIT_IN.unpack_from(request, p.IN_HEADER.size)
    if not flags & p.INIT_EXT or not flags2 & p.PASSTHROUGH:
        raise OSError(errno.EOPNOTSUPP, "this kernel knows no passthrough (Linux 6.9 does)")
    reply = bytearray(p.OUT_HEADER.size + p.INIT_OUT_SIZE)
    p.OUT_HEADER.pack_into(reply, 0, len(reply), 0, unique)
    struct.pack_into("<III", reply, p.OUT_HEADER.size, major, min(minor, 40), readahead)
    struct.pack_into("<I", reply, p.OUT_HEADER.size + 20, 1 << 17)  # max_write
    p.edit_init(reply, depth)
    os.write(device, reply)
