"""Threads that only commit: they read every byte that training has written, and must not take its processors or disk.

Apart from trio's threads, which others use in turn, and which without privilege could not take their own priority back.
Their place in the disk's queue is the last one. Their place on the processors is not: a thread that is seldom scheduled
keeps Python's lock meanwhile, and with it the event loop (measured on two busy cores: up to 1 s at nice 19, 0.2 s at
nice 10, 0.06 s at nice 0). The threads that hash for them have a low one; those never hold that lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import trio
from blake3 import blake3

P = ParamSpec("P")
T = TypeVar("T")

NICE = 10  # of the hashing: a tenth of the share of a process that trains
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}  # asm/unistd.h
_WHO_PROCESS = 1  # linux/ioprio.h; 0 is the calling thread
_BEST_EFFORT_LAST = 2 << 13 | 7  # never "idle": on a busy disk that would be never


class Workers:
    """Up to `count` functions at a time, each in a thread of low priority."""

    def __init__(self, count: int) -> None:
        hashers = threading.Thread(target=_start_hashers)
        hashers.start()
        hashers.join()
        self._pool = ThreadPoolExecutor(count, "commit", initializer=_queue_last)

    async def run(self, function: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> T:
        """What `function` returns or raises. Waits for its end whatever happens: it cannot be stopped half-way."""
        token = trio.lowlevel.current_trio_token()
        done = trio.Event()
        future = self._pool.submit(function, *arguments, **more)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        with trio.CancelScope(shield=True):
            await done.wait()
        return future.result()

    def close(self) -> None:
        self._pool.shutdown()


def _start_hashers() -> None:
    """BLAKE3's threads are started by its first use for many, and inherit the priority of whoever that is."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    blake3(max_threads=blake3.AUTO).update(bytes(1 << 20))


def _queue_last() -> None:
    number = _SYS_IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _BEST_EFFORT_LAST)
