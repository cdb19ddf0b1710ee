"""What an object store can do, found out by doing it; what was written for it is removed again.

Large files come back in parts, so a part is asked for. Several machines can share a store if of many conditional
creates of one object exactly one succeeds. Some servers take the condition and ignore it, so it is tried: twice, one
after the other, then many at once.
"""

from __future__ import annotations

import contextlib
import os
from uuid import uuid4

from msgspec import Struct

from fuse_ckpt.errors import PartsRefused, StorageFailed
from fuse_ckpt.transfer import lanes
from fuse_ckpt.transfer.names import Place
from fuse_ckpt.transfer.remote import Found, Remote

RACERS = 16
PROBE = ".fuse-ckpt-probe-"  # begins the name of what is written to try a store out


class Probed(Struct, frozen=True):
    """What a store did. `second_create` and `winners` are of a condition that it should have kept: False, and 1."""

    place: Place
    reads_back: bool  # what was put is what is read, and listed, at once
    second_create: bool  # a second conditional create of one object succeeded
    winners: int  # of RACERS conditional creates at once
    removes: bool  # what was removed is gone
    reads_parts: bool  # of an object a part can be had: no large file comes back otherwise

    @property
    def creates_once(self) -> bool:
        """Whether several machines can share the store."""
        return not self.second_create and self.winners == 1


def probe(remote: Remote, place: Place) -> Probed:
    """Try the object store out below `place`. Errors: StorageFailed, where it refuses plain reads or writes."""
    top = Place(place.bucket, place.key(PROBE + uuid4().hex))
    keys = [top.key(name) for name in ("plain", "twice", "race")]
    plain, twice, race = keys
    data = os.urandom(1000)
    removed = False
    try:
        remote.put(plain, data)
        reads_back = remote.get(plain, 2000) == data and plain in remote.list(top.prefix)
        reads_parts = _reads_parts(remote, plain, data)
        remote.create(twice, b"first")
        second = remote.create(twice, b"second")
        winners = _race(remote, race)
        remote.delete(keys)
        removed = not remote.list(top.prefix)
    finally:
        if not removed:
            with contextlib.suppress(StorageFailed):
                remote.delete(keys)
        remote.drop_directory(top.prefix)
    return Probed(place, reads_back, second, winners, removed, reads_parts)


def _reads_parts(remote: Remote, key: str, data: bytes) -> bool:
    try:
        return remote.read_range(Found(key, len(data), 0), 100, 200) == data[100:200]
    except PartsRefused:
        return False


def _race(remote: Remote, key: str) -> int:
    won: list[int] = []

    def attempt(racer: int) -> None:
        if remote.create(key, f"racer {racer}".encode()):
            won.append(racer)

    lanes.run(RACERS, range(RACERS), attempt, lanes.Stop())
    return len(won)
