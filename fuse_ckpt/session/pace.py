"""How fast bytes may go, and a way to end their going."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Lock


class Left(Exception):
    """Somebody said to leave it at that."""


class Pace:
    """Told of bytes before they go, by any thread: waits until they may, at `rate` bytes a second (None: at once).

    `stop` ends it: whoever asks then is told Left.
    """

    def __init__(self, rate: int | None, stop: Event, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._stop = stop
        self._clock = clock
        self._next = clock()  # when the next byte may go
        self._turn = Lock()
        self.done = 0  # bytes that were let go so far

    def let_go(self, count: int) -> None:
        """Errors: Left."""
        with self._turn:
            self.done += count
            now = self._clock()
            begin = max(now, self._next)
            self._next = begin + (count / self._rate if self._rate else 0.0)
        if self._stop.wait(max(0.0, begin - now)):
            raise Left

    def pause(self, seconds: float) -> None:
        """Errors: Left."""
        if self._stop.wait(seconds):
            raise Left
