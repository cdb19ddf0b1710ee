"""The process that fetches files which somebody opens in a mount: `python -m fuse_ckpt.session fetch`.

A line of JSON for each file that is wanted, a line for each that is there. Who opens one file of a checkpoint will open
the others: what is wanted comes first, and then the rest of its checkpoint, without being asked for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from queue import PriorityQueue
from threading import Lock, Thread

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.session.bringing import Source
from fuse_ckpt.session.daemon import configure_logging
from fuse_ckpt.session.elsewhere import PATIENCE
from fuse_ckpt.store import Lease, Store

AT_ONCE = 4  # files; a large one is read in parts, several at once
WANTED, DESCRIBED, AHEAD = 0, 1, 2  # what is done first


class Fetcher:
    """Fetches files into the store, several at once."""

    def __init__(self, store: Store, environment: Mapping[str, str]) -> None:
        self._store = store
        self._environment = environment
        self._queue: PriorityQueue[tuple[int, int, str, str]] = PriorityQueue()
        self._sources: dict[str, Source] = {}
        self._leases: list[Lease] = []
        self._count = 0
        self._turn = Lock()
        self._speaking = Lock()

    def want(self, checkpoint: str, digest: str) -> None:
        """Fetch it next; digest "": only learn what the checkpoint is made of, after what is to be fetched."""
        self._put(WANTED if digest else DESCRIBED, checkpoint, digest)

    def work(self) -> None:
        """Fetch what is wanted, for ever; one of several threads."""
        while True:
            urgency, _, checkpoint, digest = self._queue.get()
            try:
                if urgency == DESCRIBED:
                    self._learn(checkpoint)
                else:
                    self._fetch(checkpoint, digest)
                error = None
            except (FuseCkptError, OSError) as exc:
                error = str(exc)
            except Exception as exc:  # whoever waits for it must hear of it
                error = repr(exc)
            if urgency != AHEAD:
                self._say({"checkpoint": checkpoint, "digest": digest, "error": error})

    def _learn(self, checkpoint: str) -> None:
        if not self._store.is_learned(checkpoint):
            Source(self._store, self._store.checkpoint(checkpoint), self._environment, PATIENCE)

    def _fetch(self, checkpoint: str, digest: str) -> None:
        if not self._store.receive(checkpoint, digest):  # else it is here already
            self._source(checkpoint).fetch_one(digest, lambda count: None)
        self._store.arrived(checkpoint)

    def _put(self, urgency: int, checkpoint: str, digest: str) -> None:
        with self._speaking:
            self._count += 1
            self._queue.put((urgency, self._count, checkpoint, digest))

    def _source(self, checkpoint: str) -> Source:
        with self._turn:
            if checkpoint not in self._sources:
                head = self._store.checkpoint(checkpoint)
                self._sources[checkpoint] = Source(self._store, head, self._environment, PATIENCE)
                self._leases.append(self._store.lease(checkpoint, f"a fetch, process {os.getpid()}"))
                for digest in self._store.absent(checkpoint):
                    self._put(AHEAD, checkpoint, digest)
            return self._sources[checkpoint]

    def _say(self, answer: dict[str, str | None]) -> None:
        with self._speaking:
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
            sys.stdout.buffer.flush()


def main() -> None:
    """Fetch until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the training
    configure_logging(True)
    lines = sys.stdin.buffer
    with Store.open(Path(json.loads(lines.readline())["store"]), create=False) as store:
        fetcher = Fetcher(store, dict(os.environ))
        for number in range(AT_ONCE):
            Thread(target=fetcher.work, daemon=True, name=f"fetch-{number}").start()
        for line in lines:
            wanted = json.loads(line)
            fetcher.want(wanted["checkpoint"], wanted["digest"])
        os._exit(0)  # whatever is under way is done again by whoever wants it
