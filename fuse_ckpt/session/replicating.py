"""What a mount and a run have to do with replication besides the copying: where to, and whether to wait for it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fuse_ckpt.errors import UsageError
from fuse_ckpt.model import Replica
from fuse_ckpt.session.options import NOWHERE, MountOptions
from fuse_ckpt.store import Store
from fuse_ckpt.wording import size

LOOK = 0.3  # seconds between two looks at the outbox
REMINDER = 60.0  # seconds between two words about it

Report = Callable[[str], None]


def check(store: Store, options: MountOptions) -> None:
    """Refuse to copy to where nothing can be copied to. Errors: UnknownConnection, UsageError."""
    if options.replicate in (None, NOWHERE):
        return
    if store.connection(options.replicate or "").attached is None:
        raise UsageError(
            f'Storage connection {options.replicate} is not attached: "fuse-ckpt storage attach {options.replicate}".'
        )


def set_replication(store: Store, options: MountOptions) -> None:
    """Record where the job's checkpoints are copied to from now on. Errors: UnknownConnection, UsageError."""
    assert options.job is not None
    check(store, options)
    recorded = store.job(options.job).replication
    wanted = options.replication(recorded)
    if wanted != recorded:
        store.replicate(options.job, wanted)


def drain(store: Store, job: str, report: Report) -> bool:
    """Wait until everything that the job has committed is copied; False where a signal said not to."""
    waiting = store.waiting(job=job)
    if not waiting:
        return True
    with _leaving() as left:
        reminded = 0.0
        while waiting and not left:
            if time.monotonic() >= reminded:
                reminded = time.monotonic() + REMINDER
                report(_standing(waiting))
            time.sleep(LOOK)
            waiting = store.waiting(job=job)
    if waiting:
        report(_left(waiting))
    return not waiting


def tell_rest(store: Store, job: str, report: Report) -> None:
    """Say what is left to copy, if anything is."""
    waiting = store.waiting(job=job)
    if waiting:
        report(_left(waiting))


def _standing(waiting: Mapping[str, Replica]) -> str:
    why = next((f": {replica.reason}" for replica in waiting.values() if replica.reason), "")
    return f"waiting for {_what(waiting)} to be copied; Ctrl-C leaves that for later{why}"


def _left(waiting: Mapping[str, Replica]) -> str:
    (name, *_) = {replica.storage for replica in waiting.values()}
    return f"{_what(waiting)} left to copy: the next run of the job goes on with it, or fuse-ckpt storage sync {name}"


def _what(waiting: Mapping[str, Replica]) -> str:
    left = sum(replica.size - replica.sent for replica in waiting.values())
    count = f"{len(waiting)} checkpoint{'s' if len(waiting) > 1 else ''}"
    return f"{count} ({size(left)})"


@contextmanager
def _leaving() -> Iterator[list[int]]:
    """A list that a signal to end puts its number into, instead of ending us."""
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
