"""Bytes from the object store: each once over the network, and proved before they have a name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from uuid import uuid4

from blake3 import blake3

from fuse_ckpt.errors import CorruptBlob
from fuse_ckpt.transfer import Found, Remote, Stop

from .sending import Advance
from .values import PartFile


def fetch_file(remote: Remote, key: str, file: PartFile, path: Path, advance: Advance) -> None:
    """Get the bytes to a new file beside `path`, and give it that name when they are proved and on the disk."""
    partial = path.parent / f".{uuid4().hex}.partial"
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fetch_into(remote, key, file, fd, advance)
        os.fsync(fd)
        os.rename(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    finally:
        os.close(fd)
    _sync_directory(path.parent)


def fetch_into(remote: Remote, key: str, file: PartFile, fd: int, advance: Advance) -> None:
    """Get the bytes, in order, into an empty file. Errors: CorruptBlob, when they are all there and not right."""
    hasher = blake3()
    at = 0
    if file.size:
        for data in remote.read(Found(key, file.size, 0), Stop()):
            hasher.update(data)
            at = _write(fd, data, at)
            advance(len(data))
    if hasher.hexdigest() != file.digest:
        raise CorruptBlob(
            f"The bytes of {file.path} in the object store ({key}) are damaged: nothing was kept of them; "
            "take another checkpoint."
        )


def _write(fd: int, data: memoryview, at: int) -> int:
    while data:
        count = os.pwrite(fd, data, at)
        data, at = data[count:], at + count
    return at


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
