"""The input of a run or a mount: found, and fetched where it lies in an object store alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fuse_ckpt import errors
from fuse_ckpt.errors import FuseCkptError, NotStarted, StorageFailed, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, State
from fuse_ckpt.store import Store
from fuse_ckpt.wording import size

STEP = 5.0  # seconds between two words of progress

Report = Callable[[str], None]


def find_input(store: Store, reference: str, report: Report, *, whole: bool = False) -> Checkpoint:
    """The checkpoint that a person means, which a mount of this store can show; `whole`: with all its bytes here.

    Where object stores are attached, what is new in them is listed first. Errors: UnknownCheckpoint, InvalidReference,
    StorageFailed, CorruptBlob, Corrupt.
    """
    if any(one.attached is not None for one in store.connections()):
        return store.resolve(bring_apart(store, reference, report, whole=whole))
    return store.resolve(reference)


def chosen_input(
    reference: str | None, if_any: bool, force: bool, find: Callable[[str], Checkpoint]
) -> Checkpoint | None:
    if reference is None:
        return None
    try:
        found = find(reference)
    except FuseCkptError as exc:
        if if_any and isinstance(exc, UnknownCheckpoint):
            return None
        raise
    if found.state is not State.AVAILABLE and not force:
        raise NotStarted(
            f"Checkpoint {found.id} is {found.state.value}: {found.failure}. --force resumes from it all the same."
        )
    return found


def accept(store: Store, reference: str, found: Checkpoint | None, force: bool, report: Report) -> None:
    """Refuse to resume from a part; say that it is a failed one, or that a newer one is. Errors: NotStarted."""
    if found is None:
        return
    if not force and store.is_part(found.id):
        raise NotStarted(f"Checkpoint {found.id} lacks the parts of other nodes: storage sync looks for them.")
    if found.state is State.FAILED:
        report(f"resuming from {found.id}, which is failed: {found.failure}")
    if (newer := _passed_over(store, reference, found)) is not None:
        report(f"resuming from {found.id}: the newer {newer.id} ({newer.name}) is failed: {newer.failure}")


def _passed_over(store: Store, reference: str, found: Checkpoint) -> Checkpoint | None:
    """The newest failed checkpoint of the job that `JOB:latest` would have meant, were it whole."""
    job, _, word = reference.rpartition(":")
    failed = store.checkpoints(job, {State.FAILED}, limit=1) if word == "latest" else []
    return failed[0] if failed and failed[0].id > found.id else None


def bring_apart(
    store: Store,
    reference: str,
    report: Report = lambda line: None,
    *,
    whole: bool = True,
    digests: Sequence[str] | None = None,
) -> str:
    """As `bring`, in a process of its own, for who forks: ours is to start no threads for it. The id."""
    command = [sys.executable, "-m", "fuse_ckpt.session", "bring"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        options = {"store": str(store.layout.root), "reference": reference, "whole": whole, "digests": digests}
        with process.stdin as stdin:
            stdin.write(json.dumps(options).encode() + b"\n")
        listener = _Listener(report)
        for line in process.stdout:
            listener.hear(json.loads(line))
    except BaseException:
        process.kill()
        raise
    finally:
        process.stdout.close()
        process.wait()
    if listener.found is None:
        raise StorageFailed(f"The process that was to fetch {reference} ended with {process.returncode}.")
    return listener.found


class _Listener:
    """Understands what the process says."""

    def __init__(self, report: Report) -> None:
        self.found: str | None = None
        self._report = report
        self._what = ""
        self._told = 0.0

    def hear(self, answer: dict[str, Any]) -> None:
        if "error" in answer:
            raise _error(answer)
        if "said" in answer:
            self._report(answer["said"])
        if "fetching" in answer:
            self._what = f"fetching {answer['fetching']} from {answer['from']}"
        if "total" in answer:
            self._progress(answer["done"], answer["total"])
        self.found = answer.get("id", self.found)

    def _progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= STEP or done == total:
            self._told = now
            self._report(f"{self._what}: {100 * done // max(1, total)} % of {size(total)}")


def _error(answer: dict[str, Any]) -> FuseCkptError:
    kind = getattr(errors, answer["kind"], StorageFailed)
    error: FuseCkptError = FuseCkptError.__new__(kind if issubclass(kind, FuseCkptError) else StorageFailed)
    Exception.__init__(error, answer["error"])
    return error
