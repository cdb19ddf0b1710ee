"""A file that is made once: by whoever is first, whole, and on the disk before it has its name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from uuid import uuid4

from fuse_ckpt.transfer import tree


def create(path: Path, data: bytes) -> bool:
    """Make the file, and the directories above it; False where there is one already.

    link(2) succeeds for one of many, also over NFS. What a crash leaves is called `…#<number>`, which no listing of a
    directory as an object store shows. Errors: OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half_made = path.with_name(f"{path.name}#{uuid4().int}")
    fd = os.open(half_made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(fd, "wb", buffering=0) as file:
            _write(file.fileno(), data)
            os.fsync(file.fileno())
        os.link(half_made, path)
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            half_made.unlink()
    tree.sync_path(path.parent)
    return True


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
