"""Bytes to the object store: proved while they go, and not sent twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from blake3 import blake3

from fuse_ckpt.errors import CorruptBlob, FuseCkptError, StorageFailed
from fuse_ckpt.faults import fault
from fuse_ckpt.transfer import Found, Remote, Stop

Advance = Callable[[int], None]


def ignore(count: int) -> None:
    """An `Advance` for whom nobody waits."""


class Source:
    """A local file with the size and the digest (BLAKE3-256) that it is said to have."""

    def __init__(self, path: Path, size: int, digest: str) -> None:
        self.path, self.size, self.digest = path, size, digest

    def chunks(self, count: int, advance: Advance) -> Iterator[bytes]:
        """The bytes, `count` at a time. Raises CorruptBlob before the last ones where they are not right."""
        hasher = blake3()
        held = b""
        seen = 0
        for data in self._read(count):
            if held:
                advance(len(held))
                yield held
            hasher.update(data)
            seen += len(data)
            held = data
        if seen != self.size or hasher.hexdigest() != self.digest:
            raise CorruptBlob(f"The stored bytes at {self.path} are damaged: they do not leave this machine.")
        advance(len(held))
        yield held

    def _read(self, count: int) -> Iterator[bytes]:
        """No OSError of the disk is to pass for the object store's."""
        try:
            with open(self.path, "rb", buffering=0) as blob:
                while data := blob.read(count):
                    yield data
        except FileNotFoundError:
            raise CorruptBlob(f"The stored bytes at {self.path} are missing: they cannot be sent.") from None
        except OSError as error:
            raise FuseCkptError(f"{self.path} cannot be read: {error.strerror}.") from None


def send(remote: Remote, key: str, prefix: str, source: Source, advance: Advance, *, read_back: bool) -> None:
    """Have the source's bytes lie at `key`, which names their digest: what is there whole need not be sent.

    An object appears whole or not at all, and only when its bytes had the digest: its size tells whether the store
    has kept all of it. A directory tells less after a power cut: there, what an earlier process sent is read.
    """
    there = remote.head(key)
    doubtful = read_back or remote.is_directory
    if there is None or there.size != source.size or (doubtful and digest_of(remote, there) != source.digest):
        fault("share:data")
        remote.upload(key, source.size, lambda count: source.chunks(count, advance))
        if read_back:
            _prove(remote, key, source)
    else:
        advance(source.size)
    remote.settle(prefix, [key])
    fault("share:data:sent")


def missing(remote: Remote, sizes: Mapping[str, int]) -> dict[str, str]:
    """Those of the objects that are not there with these sizes: key → a sentence."""
    found: dict[str, Found] = {}
    for prefix in sorted({os.path.dirname(key) for key in sizes}):
        found |= remote.list(prefix)
    wrong = {}
    for key, size in sizes.items():
        there = found.get(key) or remote.head(key)  # a listing may be older than the object
        if there is None or there.size != size:
            what = "is not there" if there is None else f"has {there.size} bytes instead of {size}"
            wrong[key] = f"The object {key} {what}: it has to be sent again."
    return wrong


def digest_of(remote: Remote, found: Found) -> str:
    hasher = blake3()
    for data in remote.read(found, Stop()):
        hasher.update(data)
    return hasher.hexdigest()


def _prove(remote: Remote, key: str, source: Source) -> None:
    there = remote.head(key)
    if there is None or there.size != source.size or digest_of(remote, there) != source.digest:
        raise StorageFailed(f"The object {key} is not as it was sent: it has to be sent again.")
