from __future__ import annotations

import threading

import pytest

from fuse_ckpt.transfer import lanes


def test_every_item_is_worked_on_once_and_no_more_at_once_than_asked_for() -> None:
    done: list[int] = []
    now: list[int] = []
    most: list[int] = []
    meet = threading.Barrier(3, timeout=10)
    lock = threading.Lock()

    def work(item: int) -> None:
        with lock:
            now.append(item)
            most.append(len(now))
        if item < 3:
            meet.wait()  # three are under way together
        with lock:
            now.remove(item)
            done.append(item)

    lanes.run(3, range(20), work, lanes.Stop())
    assert (sorted(done), max(most)) == (list(range(20)), 3)


def test_the_first_error_stops_the_others() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 5:
            raise ValueError("five")
        if item > 5:
            stopped.wait(20)
        done.append(item)

    stopped = threading.Event()

    class Stop(lanes.Stop):
        def set(self) -> None:
            super().set()
            stopped.set()

    stop = Stop()
    with pytest.raises(ValueError, match="five"):
        lanes.run(2, iter(range(1000)), work, stop)
    assert len(done) <= 6
    with pytest.raises(lanes.Stopped):
        stop.check()


def test_nothing_to_do_is_done() -> None:
    lanes.run(0, [], print, lanes.Stop())
    assert list(lanes.ahead(4, [], str)) == []


def test_what_is_fetched_ahead_comes_in_order() -> None:
    gate = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert gate.wait(10)
        if item == 3:
            gate.set()  # the fourth is worked on while the first is not done
        return item * item

    assert list(lanes.ahead(4, range(10), work)) == [item * item for item in range(10)]


def test_an_error_ahead_comes_where_it_belongs() -> None:
    found = lanes.ahead(3, [1, 0, 2], lambda item: 1 // item)
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)
