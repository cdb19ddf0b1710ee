"""Which checkpoints a mount shows to somebody at this moment: `collect` leaves them until nobody looks any more.

Each mount has one file in locks/, which it keeps locked as long as it lives, and writes an id into before it shows the
checkpoint. Only then it looks whether the checkpoint is deleted, and `collect` reads the files after it saw that it is:
one of the two sees the other. One file, not one lock for each checkpoint: a mount may know ten thousand of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from . import locks
from .locks import Lock

PREFIX = "use-"
ROOM = 1 << 16  # bytes that are set aside, for 1,771 checkpoints: looking at one must not fail on a full disk
_SLOT = 37  # bytes: an id and a line's end


class Uses:
    """The checkpoints that one mount shows. `check` raises UnknownCheckpoint for one that is deleted."""

    def __init__(self, directory: Path, who: str, check: Callable[[str], object]) -> None:
        self._lock: Lock = locks.exclusive(directory / f"{PREFIX}{uuid4().hex}")
        header = f"{who}\n".encode(errors="surrogateescape")
        self._begin = len(header)
        with suppress(OSError):  # on a full disk it can be mounted all the same
            self._lock.set_aside(ROOM)
            self._lock.put(0, header)
        self._check = check
        self._closed = False
        self._count: Counter[str] = Counter()
        self._slots: dict[str, int] = {}
        self._free: list[int] = []

    @property
    def held(self) -> Collection[str]:
        return self._slots.keys()

    def hold(self, checkpoint: str) -> None:
        """One more place of the checkpoint is shown. Errors: UnknownCheckpoint, OSError; then it is not."""
        if checkpoint not in self._slots:
            slot = self._free.pop() if self._free else len(self._slots)
            self._put(slot, checkpoint)
            self._slots[checkpoint] = slot
            try:
                self._check(checkpoint)
            except BaseException:
                self._drop(checkpoint)
                raise
        self._count[checkpoint] += 1

    def release(self, checkpoint: str) -> None:
        """One place less of it is shown."""
        self._count[checkpoint] -= 1
        if self._count[checkpoint] <= 0:
            del self._count[checkpoint]
            self._drop(checkpoint)

    def close(self) -> None:
        self._closed = True
        with suppress(OSError):
            self._lock.path.unlink()
        self._lock.close()

    def __enter__(self) -> Uses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self, checkpoint: str) -> None:
        slot = self._slots.pop(checkpoint)
        self._put(slot, "")
        self._free.append(slot)

    def _put(self, slot: int, checkpoint: str) -> None:
        if self._closed:
            return
        self._lock.put(self._begin + slot * _SLOT, checkpoint.ljust(_SLOT - 1).encode() + b"\n")


def in_use(directory: Path) -> dict[str, str]:
    """The checkpoints that a mount shows, and which. Files of mounts that have died are removed."""
    found: dict[str, str] = {}
    for path in directory.glob(f"{PREFIX}*"):
        if locks.is_held(path):
            who, *ids = locks.read_note(path).split("\n")
            found |= {one: who for line in ids if (one := line.strip(" \0"))}
            continue
        dead = locks.try_exclusive(path)
        if dead is not None:
            with dead:
                path.unlink(missing_ok=True)
    return found
