"""Bytes from the object store: each once over the network, and proved before they have a name."""

from __future__ import annotations

from pathlib import Path

from fuse_ckpt.errors import CorruptBlob
from fuse_ckpt.transfer import Found, Remote, Stop

from .partial import Partial
from .sending import Advance, ignore
from .values import PartFile


def fetch_file(remote: Remote, key: str, file: PartFile, path: Path, advance: Advance) -> None:
    """Get the bytes to a file beside `path`, and give it that name when they are proved and on the disk."""
    with Partial(path, file.digest, advance) as partial:
        recalled = partial.held
        _get(remote, key, file, partial, advance)
        if recalled and not partial.is_right:  # whatever it was, an earlier fetch may have brought it
            partial.clear()
            _get(remote, key, file, partial, ignore)
        if not partial.is_right:
            partial.clear()
            raise CorruptBlob(
                f"The bytes of {file.path} in the object store ({key}) are damaged: nothing was kept of them; "
                "take another checkpoint."
            )
        partial.finish()


def _get(remote: Remote, key: str, file: PartFile, partial: Partial, advance: Advance) -> None:
    if partial.held > file.size:
        partial.clear()
    for data in remote.read(Found(key, file.size, 0), Stop(), partial.held):
        partial.add(data)
        advance(len(data))
