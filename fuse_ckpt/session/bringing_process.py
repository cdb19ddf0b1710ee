"""Finding and fetching an input in a process of its own: `python -m fuse_ckpt.session bring`.

Whoever starts a training is one thread that forks, and stays so. Options come as a line of JSON; so go progress,
sentences, and at the end the id or the error.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.session import attaching, elsewhere
from fuse_ckpt.session.shared import shared_store
from fuse_ckpt.store import Store

STEP = 0.2  # seconds between two words of progress
PATIENCE = 5.0  # seconds for a listing: what is known here may do


class BringOptions(Struct, frozen=True):
    """`reference`: what a person means; `whole`: have all its bytes here, too, or those of the files of `digests`."""

    store: Path
    reference: str
    whole: bool = True
    digests: tuple[str, ...] | None = None


def main() -> None:
    """Find it, fetch it, say so."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    line = sys.stdin.buffer.readline()
    options = msgspec.json.decode(line, type=BringOptions, dec_hook=lambda kind, value: kind(value))
    try:
        with Store.open(options.store, create=False) as store:
            _refresh(store, options.reference)
            found = store.resolve(options.reference)
            if found.remote is not None:
                _say({"fetching": found.id, "from": found.remote} if options.whole else {})
                environment, tell = dict(os.environ), _Progress().tell
                found = elsewhere.bring(
                    store, found, environment, progress=tell, whole=options.whole, digests=options.digests
                )
        _say({"id": found.id})
    except FuseCkptError as error:
        _say({"error": str(error), "kind": type(error).__name__})


def _refresh(store: Store, reference: str) -> None:
    """List what is new in each object store, as far as it may be meant; one that does not answer is no reason to give
    up."""
    jobs = _jobs(reference)
    if not jobs and _is_known(store, reference):
        return
    for known in store.connections():
        if known.attached is None:
            continue
        try:
            shared = shared_store(store, known, dict(os.environ), PATIENCE)
            attaching.refresh(store, known, shared, jobs or None)
        except FuseCkptError as error:
            _say({"said": f"what is new in {known.name} is not known: {error}"})


def _jobs(reference: str) -> list[str]:
    """The job that JOB:latest, JOB:best, JOB/NAME name; none where it is an id, or a tag."""
    job, colon, word = reference.rpartition(":")
    if colon and word in ("latest", "best"):
        return [job]
    job, slash, _ = reference.partition("/")
    return [job] if slash else []


def _is_known(store: Store, reference: str) -> bool:
    try:
        store.resolve(reference)
    except FuseCkptError:
        return False
    return True


class _Progress:
    def __init__(self) -> None:
        self._told = 0.0

    def tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= STEP or done == total:
            self._told = now
            _say({"done": done, "total": total})


def _say(answer: dict[str, object]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
