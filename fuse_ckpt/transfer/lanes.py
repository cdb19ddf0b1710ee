"""Several things at once, in threads: the first error, or Ctrl-C, stops them all."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from threading import Event, Lock, Thread
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

GRACE = 10.0  # seconds that Ctrl-C waits for requests that are under way; then they are left behind


class Stopped(Exception):
    """Another lane failed, or somebody pressed Ctrl-C."""


class Stop:
    """What a lane asks between two steps, from whatever thread."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Errors: Stopped."""
        if self._event.is_set():
            raise Stopped


def run(count: int, items: Iterable[T], work: Callable[[T], None], stop: Stop) -> None:
    """Do `work` for each item, at most `count` at once; raise the first error when all lanes have come to an end.

    Threads that are left behind do not keep the process from ending.
    """
    waiting = iter(items)
    turn = Lock()
    errors: list[BaseException] = []

    def lane() -> None:
        try:
            while True:
                stop.check()
                with turn:
                    item = next(waiting)
                work(item)
        except (StopIteration, Stopped):
            return
        except BaseException as error:
            errors.append(error)
            stop.set()

    lanes = [Thread(target=lane, daemon=True, name=f"lane-{number}") for number in range(count)]
    for thread in lanes:
        thread.start()
    try:
        for thread in lanes:
            thread.join()
    except BaseException:
        stop.set()
        _wait(lanes)
        raise
    if errors:
        raise errors[0]


def ahead(count: int, items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """What `work` makes of each item, in order; up to `count` are worked on at once, ahead of who asks."""
    begun: deque[_Begun[R]] = deque()
    for item in items:
        begun.append(_Begun(lambda item=item: work(item)))  # type: ignore[misc]
        if len(begun) == count:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


class _Begun(Generic[R]):
    """A call in a thread of its own, which does not keep the process from ending."""

    def __init__(self, call: Callable[[], R]) -> None:
        self._call = call
        self._value: list[R] = []
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> R:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value.pop()

    def _run(self) -> None:
        try:
            self._value.append(self._call())
        except BaseException as error:
            self._error = error


def _wait(lanes: Iterable[Thread]) -> None:
    deadline = time.monotonic() + GRACE
    for thread in lanes:
        thread.join(max(0.0, deadline - time.monotonic()))
