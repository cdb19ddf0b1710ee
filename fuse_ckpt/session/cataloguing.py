"""`catalog sync`, and the rows that an uploader adds: asked of a process that ends with it.

A process of its own, because deltalake is large, keeps threads, and takes from the environment what it was not told.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec
from msgspec import Struct

from fuse_ckpt import catalog, errors
from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.session.elsewhere import PATIENCE
from fuse_ckpt.session.shared import shared_store
from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.store import Store

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "fuse_ckpt.session", "catalog")
APART = 10.0  # seconds between two starts: many small checkpoints share one
LOOK = 600.0  # seconds between two looks whether there is a catalog


class CatalogOptions(Struct, frozen=True):
    """What the process is told. `groups` (job, group): add their rows; none: sync. It may hold secrets: it goes through
    a pipe."""

    store: str
    storage: str
    environment: dict[str, str]
    patience: float
    jobs: tuple[str, ...] = ()
    rebuild: bool = False
    groups: tuple[tuple[str, str], ...] = ()


def sync(
    store: Store,
    name: str,
    environment: Mapping[str, str],
    jobs: tuple[str, ...],
    patience: float,
    *,
    rebuild: bool,
) -> catalog.Brought:
    """Bring the catalog of the object store that `name` is attached to, to what its decisions say.

    Errors: FuseCkptError (the extra is not there), UnknownConnection, UsageError (not attached, another's table),
    UnknownJob, StorageFailed, Corrupt (the table: rebuild it), Busy.
    """
    catalog.check_installed()
    shared_store(store, store.connection(name), environment, patience)
    options = CatalogOptions(str(store.layout.root), name, dict(environment), patience, jobs, rebuild)
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    try:
        said, _ = process.communicate(msgspec.json.encode(options) + b"\n")
    finally:
        process.kill()
        process.wait()
    return _answer(said, process.returncode)


def _answer(said: bytes, code: int) -> catalog.Brought:
    try:
        answer = json.loads(said)
    except ValueError:
        raise FuseCkptError(f"The process that writes the catalog ended with {code}: try again.") from None
    if "error" not in answer:
        return msgspec.convert(answer, catalog.Brought)
    kind = getattr(errors, str(answer["kind"]), FuseCkptError)
    error = FuseCkptError.__new__(kind if issubclass(kind, FuseCkptError) else FuseCkptError)
    Exception.__init__(error, answer["error"])  # some kinds make their sentence themselves
    raise error


class Appending:
    """The rows of what one connection's uploader has seen decided; best effort, and never in its way.

    What is missed (a process that was killed, an object store that does not answer) the next `catalog sync` brings.
    """

    def __init__(self, store: Store, name: str, environment: Mapping[str, str]) -> None:
        self._store = store
        self._name = name
        self._environment = environment
        self.processes: list[subprocess.Popen[bytes]] = []
        self._waiting: dict[tuple[str, str], None] = {}
        self._not_before = 0.0
        self._is_wanted = False  # by the last look

    def add(self, job: str, group: str) -> None:
        """A group that was decided just now."""
        self._waiting[job, group] = None

    def turn(self, shared: SharedStore) -> None:
        """Have the rows written that wait, if it is time for it, and somebody has made a catalog."""
        if not self._waiting or time.monotonic() < self._not_before or self._is_running():
            return
        self._not_before = time.monotonic() + LOOK
        try:
            self._is_wanted = catalog.is_installed() and shared.has_catalog()
            if self._is_wanted:
                self._start()
            self._waiting.clear()  # who makes a catalog from now on finds them
        except Exception as error:  # whatever it is, copies are what matters
            _log.info("the catalog in %s is not written to now: %s", self._name, error)

    def finish(self) -> None:
        """Have written what waits, and wait for nothing."""
        if self._waiting and self._is_wanted:
            with suppress(OSError):
                self._start()

    def _is_running(self) -> bool:
        self.processes = [one for one in self.processes if one.poll() is None]
        return bool(self.processes)

    def _start(self) -> None:
        self._not_before = time.monotonic() + APART
        options = CatalogOptions(
            str(self._store.layout.root), self._name, dict(self._environment), PATIENCE, groups=tuple(self._waiting)
        )
        process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/")
        self.processes.append(process)
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as told:
            told.write(msgspec.json.encode(options) + b"\n")
