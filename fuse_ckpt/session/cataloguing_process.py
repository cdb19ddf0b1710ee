"""The process that writes a catalog: `python -m fuse_ckpt.session catalog`. Options come as a line of JSON; the answer
is one, too."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from fuse_ckpt import catalog
from fuse_ckpt.errors import Busy, FuseCkptError
from fuse_ckpt.session.cataloguing import CatalogOptions
from fuse_ckpt.session.daemon import configure_logging
from fuse_ckpt.session.shared import shared_store
from fuse_ckpt.store import Lock, Store
from fuse_ckpt.transfer import FAMILIES, access_of

_log = logging.getLogger(__name__)

LONGEST = 300  # seconds that adding rows may take; nobody waits for it
PAUSE = 0.1  # seconds between two looks whether another process is done


class _Added(Struct, frozen=True):
    added: int


def main() -> None:
    """Do it, and say what was done."""
    options = msgspec.json.decode(sys.stdin.buffer.readline(), type=CatalogOptions)
    if options.groups:
        signal.alarm(LONGEST)
        configure_logging(True)
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with Store.open(Path(options.store), create=False) as store:
            answer = msgspec.to_builtins(_written(store, options))
    except FuseCkptError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
        if options.groups:
            _log.warning("rows are missing in the catalog of %s until catalog sync: %s", options.storage, error)
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _written(store: Store, options: CatalogOptions) -> catalog.Brought | _Added:
    known = store.connection(options.storage)
    shared = shared_store(store, known, options.environment, options.patience)
    access = access_of(known, shared.catalog, options.environment, options.patience)
    if access.settled:  # before deltalake is there to see them
        for name in [name for name in os.environ if name.startswith(FAMILIES)]:
            del os.environ[name]
    with _alone(store, options):
        if options.groups:
            return _Added(catalog.append(shared, access, options.groups))
        return catalog.sync(shared, access, options.jobs, rebuild=options.rebuild)


def _alone(store: Store, options: CatalogOptions) -> Lock:
    """One process of this store at a time: it spares them the races, and an object store for one machine's use knows
    no conditions."""
    until = time.monotonic() + options.patience
    while (lock := store.lock_catalog(options.storage)) is None:
        if time.monotonic() > until:
            raise Busy(f"Another process is writing the catalog of {options.storage}: try again when it is done.")
        time.sleep(PAUSE)
    return lock
