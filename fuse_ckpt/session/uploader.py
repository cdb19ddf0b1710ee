"""The process that copies what waits in the outbox, for as long as a mount lives: `python -m fuse_ckpt.session upload`.

A process of its own, so that neither its memory nor its threads are the daemon's, nor its death. It reads its options
as one line of JSON from standard input; the end of that is its own end.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.model import Replica, Stage
from fuse_ckpt.session import attaching
from fuse_ckpt.session.cataloguing import Appending
from fuse_ckpt.session.daemon import configure_logging
from fuse_ckpt.session.elsewhere import PATIENCE
from fuse_ckpt.session.pace import Left, Pace
from fuse_ckpt.session.sending import Sender
from fuse_ckpt.session.shared import shared_store
from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.store import Lock, Store

_log = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks at the index's generation
RETRY = (1.0, 300.0)  # seconds after the first failure, and at most
FIRST = 4.0  # seconds until the first look: the node whose part came last decides by itself
LOOK = (1.0, 60.0)  # seconds between two looks at a group that is not decided, first and at most
REMOVE = 3900.0  # seconds; the object store keeps what is deleted for an hour
REFRESH = 600.0  # seconds between two looks for what other machines have put there; it costs a LIST for each job
REAP = 3600.0  # seconds between two looks for groups whose other parts never came
NICENESS = 10
GRACE = 0.5  # seconds to end by itself


class UploadOptions(Struct, frozen=True):
    """What an uploader is told. `rate`: bytes a second at most."""

    store: Path
    rate: int | None = None


class Uploader:
    """Copies to each connection that something waits for, one checkpoint after another."""

    def __init__(self, store: Store, environment: Mapping[str, str], pace: Pace) -> None:
        self._store = store
        self._environment = environment
        self._pace = pace
        self._lines: dict[str, _Line] = {}

    def run(self) -> None:
        """Until somebody says to leave it at that. Errors: Left."""
        try:
            while True:
                generation = self._store.generation()
                if not self._turn():
                    self._sleep(generation)
        finally:
            for line in self._lines.values():
                line.rows.finish()

    def _turn(self) -> bool:
        """Do one thing for each connection; False where there was nothing to do."""
        names = {one.storage for one in self._store.outbox().values()} | {*self._attached()}
        for name in names:
            self._lines.setdefault(name, _Line(self._store, name, self._environment, self._pace))
        turns = [self._lines[name].turn() for name in sorted(names)]
        return any(turns)

    def _attached(self) -> set[str]:
        return {one.name for one in self._store.connections() if one.attached is not None}

    def _sleep(self, generation: int) -> None:
        """Until something has changed, or it is time to look again."""
        until = time.monotonic() + LOOK[0]
        while self._store.generation() == generation and time.monotonic() < until:
            self._pace.pause(POLL)


class _Line:
    """One connection: what waits for it, and when to try again what went wrong."""

    def __init__(self, store: Store, name: str, environment: Mapping[str, str], pace: Pace) -> None:
        self._store = store
        self._name = name
        self._environment = environment
        self._pace = pace
        self._lock: Lock | None = None
        self._shared: SharedStore | None = None
        self._failures = 0
        self._said = ""
        self._not_before = 0.0
        self._looks: dict[str, tuple[float, float]] = {}  # id → when to look again, and the pause after that
        self._refresh = 0.0
        self._reap = 0.0
        self.rows = Appending(store, name, environment)

    def turn(self) -> bool:
        """Do the next thing that is due; False where nothing is. What goes wrong is said once, and tried again."""
        if time.monotonic() < self._not_before:
            return False
        self._lock = self._lock or self._store.lock_upload(self._name)
        if self._lock is None:  # another mount's uploader does it
            return False
        outbox = self._store.outbox(self._name)
        try:
            done = self._next(outbox)
        except Left:
            raise
        except Exception as error:  # whatever it is, the next one may go through, and training goes on
            self._fail(error, outbox)
            return False
        if self._shared is not None:
            self.rows.turn(self._shared)
        if self._failures:
            _log.info("%s answers again", self._name)
            self._failures, self._said = 0, ""
        return done

    def _next(self, outbox: Mapping[str, Replica]) -> bool:
        unsent = [one for one, replica in outbox.items() if replica.is_unsent]
        if unsent:  # the newest first: it is what a lost machine would be missed for
            self._send(unsent[-1], outbox[unsent[-1]])
            return True
        now = time.monotonic()
        for checkpoint, replica in outbox.items():
            soon = 0.0 if replica.stage is Stage.REMOVING else now + FIRST * random.uniform(0.5, 1.0)
            when, pause = self._looks.setdefault(checkpoint, (soon, LOOK[0]))
            if when <= now:
                self._looks[checkpoint] = (now + pause, min(LOOK[1], 2 * pause))
                self._look(checkpoint, replica)
                return True
        if now >= self._refresh:
            self._refresh = now + REFRESH * random.uniform(0.5, 1.0)
            attaching.refresh(self._store, self._store.connection(self._name), self._open())
        elif now >= self._reap:
            self._reap = now + REAP * random.uniform(0.5, 1.0)
            for job in self._partial(outbox):
                self._open().reap(job, time.time_ns())
        return False

    def _partial(self, outbox: Mapping[str, Replica]) -> set[str]:
        """The jobs of which this node has written parts that wait for others."""
        waiting = [one for one, replica in outbox.items() if replica.stage is Stage.PARTIAL]
        return {head.job for head in self._store.known_among(waiting)}

    def _look(self, checkpoint: str, replica: Replica) -> None:
        if replica.stage is not Stage.REMOVING:
            self._send(checkpoint, replica)
        elif not self._sender().remove(checkpoint, replica):
            self._looks[checkpoint] = (time.monotonic() + REMOVE, LOOK[1])

    def _send(self, checkpoint: str, replica: Replica) -> None:
        """Bring it further. Where that made it a checkpoint, one of its nodes sees to the catalog."""
        heads = self._store.known_among([checkpoint])
        sender = self._sender()
        found = sender.send(checkpoint) if replica.is_unsent else sender.look(checkpoint)
        if found is not None and found.stage is Stage.REPLICATED and replica.rank == 0:
            for head in heads:
                self.rows.add(head.job, found.group)

    def _sender(self) -> Sender:
        return Sender(self._store, self._name, self._open(), self._pace)

    def _open(self) -> SharedStore:
        if self._shared is None:
            known = self._store.connection(self._name)
            self._shared = shared_store(self._store, known, self._environment, PATIENCE)
        return self._shared

    def _fail(self, error: Exception, outbox: Mapping[str, Replica]) -> None:
        """Pause, longer each time, and differently on each machine: they would all come back at once."""
        self._shared = None  # credentials may be others by then
        pause = min(RETRY[1], RETRY[0] * 2**self._failures) * random.uniform(0.5, 1.0)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        said = str(error)
        if said == self._said:
            return
        self._said = said
        known = isinstance(error, OSError | FuseCkptError)
        _log.warning(
            "%d checkpoints wait to be copied to %s, which is tried again and again: %s", len(outbox), self._name, said,
            exc_info=None if known else error,
        )  # fmt: skip
        for checkpoint in outbox:
            self._note(checkpoint, said)

    def _note(self, checkpoint: str, reason: str) -> None:
        try:
            head = self._store.known_for_upload(checkpoint)
            self._store.note_replica(checkpoint, head, lambda now: replace(now, reason=reason))
        except FuseCkptError:  # it was deleted
            return


def main() -> None:
    """Copy until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C is for the training
    os.nice(NICENESS)
    configure_logging(True)
    options = msgspec.json.decode(
        sys.stdin.buffer.readline(), type=UploadOptions, dec_hook=lambda kind, value: kind(value)
    )
    stop = Event()
    Thread(target=_await_end, args=(stop,), daemon=True).start()
    with Store.open(options.store, create=False) as store:
        try:
            # Credentials are looked for where the provider's own tools look: in the environment, which is the mount's.
            Uploader(store, dict(os.environ), Pace(options.rate, stop)).run()
        except Left:
            return


def _await_end(stop: Event) -> None:
    """Whoever started us lets go of our standard input when it ends, however it does."""
    while sys.stdin.buffer.read(4096):
        pass
    stop.set()
    time.sleep(GRACE)
    os._exit(0)  # it hangs in a request; whatever was not recorded is done again
