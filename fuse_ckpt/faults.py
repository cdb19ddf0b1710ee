"""Named points where a test makes the world end: `fault("adopt:fsync")` does nothing until a hook is installed.

A point is named `operation:step` and sits just before its step, so a hook that raises at it leaves behind what a crash
there would leave behind. `"…:done"` sits after the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_hook: Callable[[str], None] | None = None


def fault(point: str) -> None:
    """Tell the installed hook, if any, that `point` is reached. Whatever the hook raises goes through."""
    if _hook is not None:
        _hook(point)


@contextmanager
def install(hook: Callable[[str], None]) -> Iterator[None]:
    """Install `hook` for the whole process while the block runs; then put back the one before."""
    global _hook
    before, _hook = _hook, hook
    try:
        yield
    finally:
        _hook = before
