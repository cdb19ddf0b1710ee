"""A process that dies at any step: each change of the file system that Python makes, and each named fault point.

By an audit hook (sys.addaudithook), which runs before the call and may raise: what it raises is no `Exception`, and
from then on every further step raises too, so whatever runs while the stack unwinds changes nothing more. That is what
a kill leaves behind, at the price of a function call.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fuse_ckpt import faults

_CHANGES = {
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.setxattr",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Crash(BaseException):
    """No `except Exception` may tidy up after it, as none would after a kill."""


class Life:
    """How many steps a process has taken, and at which it dies (0: it lives)."""

    def __init__(self, dies_at: int) -> None:
        self.dies_at = dies_at
        self.steps: list[str] = []

    @property
    def died(self) -> bool:
        return 0 < self.dies_at <= len(self.steps)

    def step(self, what: str) -> None:
        self.steps.append(what)
        if self.died:
            raise Crash(f"step {len(self.steps)}: {what}")


_lives: list[Life] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if not _lives:
        return
    if event == "open":
        path, _, flags = arguments
        if not (isinstance(flags, int) and flags & _WRITES) or str(path).endswith(".lock") or "/locks/" in str(path):
            return
        _lives[-1].step(f"open {path}")
    elif event in _CHANGES:
        _lives[-1].step(f"{event} {arguments[0]!r}")


_installed: list[bool] = []


@contextmanager
def life(dies_at: int = 0) -> Iterator[Life]:
    """Count the steps taken in the block; the `dies_at`-th (from 1) and all later ones raise Crash instead."""
    if not _installed:
        sys.addaudithook(_audit)  # for ever: it cannot be taken away, and costs nothing while no life is counted
        _installed.append(True)
    lived = Life(dies_at)
    _lives.append(lived)
    try:
        with faults.install(lived.step):
            yield lived
    finally:
        _lives.pop()
