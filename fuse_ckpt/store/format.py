"""The directory of a store: is it one, may we use it, can its disk hold it; and making a new one."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import re
from pathlib import Path

from fuse_ckpt.errors import StoreUnusable

from .durable import fsync_directory, make_directory, write_all
from .layout import Layout

FORMAT = 1
FORMAT_LINE = f"fuse-ckpt store {FORMAT}\n".encode()
HARMLESS = {"lost+found"}  # what a fresh disk has in it

# f_type of statfs(2). flock and a memory-mapped index mean nothing, or something else, between two hosts of these.
NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "CIFS",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x0BD00BD0: "Lustre",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x19830326: "BeeGFS",
    0x47504653: "GPFS",
}


def prepare(layout: Layout, *, create: bool) -> None:
    """Make the directories of a store, or see that they are there. Errors: StoreUnusable, saying what is wrong."""
    root = layout.root
    try:
        _check_disk(root)
        if create and not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            make_directory(root)
        _check_directory(root)
        if _is_new(layout):
            if not create:
                raise StoreUnusable(_absent(root))
            _write_format(layout)
        elif create and is_read_only(layout.format):
            raise StoreUnusable(read_only(root))
        missing = [directory for directory in layout.directories if not directory.is_dir()]
        if not (missing and is_read_only(layout.format)):  # an older version made it: it does without
            for directory in missing:
                make_directory(directory)
    except OSError as error:
        raise StoreUnusable(
            f"The store {root} cannot be opened: {error.strerror} ({error.filename or root})."
        ) from error


def is_read_only(path: Path) -> bool:
    """Whether a file's disk is read-only, as it is after an error too; found by opening the file: statvfs may lie."""
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def read_only(root: Path) -> str:
    """What to say of a store that cannot be changed."""
    return (
        f"The store {root} lies on a disk that is read-only: what is in it can be listed and fetched; to change"
        " it, look into the kernel's log for an error of the disk, then mount -o remount,rw."
    )


def filesystem_type(path: Path) -> int:
    """f_type of statfs(2), unsigned."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(512)  # struct statfs has 120 bytes; its first word is f_type
    if libc.statfs(os.fsencode(path), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF


def _check_disk(root: Path) -> None:
    nearest = next(path for path in (root, *root.parents) if path.exists())
    network = NETWORK.get(filesystem_type(nearest))
    if network is not None:
        raise StoreUnusable(f"The store {root} would lie on a network filesystem ({network}): give it a local disk.")


def _check_directory(root: Path) -> None:
    if not root.exists():
        raise StoreUnusable(_absent(root))
    if not root.is_dir():
        raise StoreUnusable(f"The store {root} is not a directory: name another with --store.")
    owner = root.stat().st_uid
    if owner != os.geteuid():
        raise StoreUnusable(
            f"The store {root} belongs to {_user(owner)} and you are {_user(os.geteuid())}:"
            " work as its owner, or name a store of your own with --store."
        )


def _is_new(layout: Layout) -> bool:
    """Whether there is no store yet; StoreUnusable where there is something else, or a newer store."""
    names = set(os.listdir(layout.root))
    if layout.format.name not in names:
        if names - HARMLESS:
            raise StoreUnusable(f"{layout.root} is not a store and not empty: name an empty directory with --store.")
        return True
    line = layout.format.read_bytes()
    if FORMAT_LINE.startswith(line) and line != FORMAT_LINE:
        return True  # its maker died while writing it
    match = re.fullmatch(rb"fuse-ckpt store ([0-9]+)\n", line)
    if match is None:
        raise StoreUnusable(f"{layout.root} is not a store: its file `format` is not one of ours.")
    if int(match[1]) > FORMAT:
        raise StoreUnusable(
            f"The store {layout.root} has format {int(match[1])}, newer than {FORMAT}: use a newer fuse-ckpt."
        )
    return False


def _write_format(layout: Layout) -> None:
    # Without O_TRUNC: two makers at once write the same bytes over each other.
    fd = os.open(layout.format, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        write_all(fd, FORMAT_LINE)
        os.fsync(fd)
    finally:
        os.close(fd)
    fsync_directory(layout.root)


def _absent(root: Path) -> str:
    return f"There is no store at {root}: the first `mount` or `training run` makes one, --store names another."


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
