"""The command line: the only room that prints and reads the environment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program (on `sys.argv` unless arguments are given) and return its exit code; it prints all there is."""
    with _ended_silently():
        from fuse_ckpt.cli import app
    return app.main(arguments)


@contextmanager
def _ended_silently() -> Iterator[None]:
    """Ctrl-C ends the process as it ends any other: nothing has begun yet, and Python would show a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
