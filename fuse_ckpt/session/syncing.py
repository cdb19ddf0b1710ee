"""`storage sync`: what a mount's uploader does, done once and by hand."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event, Thread

from fuse_ckpt.errors import Busy
from fuse_ckpt.model import Stage
from fuse_ckpt.session import attaching
from fuse_ckpt.session.elsewhere import Progress, Synced
from fuse_ckpt.session.pace import Pace
from fuse_ckpt.session.sending import Sender
from fuse_ckpt.session.shared import shared_store
from fuse_ckpt.store import Store


def sync(
    store: Store,
    name: str,
    environment: Mapping[str, str],
    rate: int | None,
    patience: float,
    progress: Progress | None,
) -> Synced:
    """Copy what waits for a connection, the newest first, and list what is new there.

    What another process copies at this moment is left to it. Errors: UnknownConnection, UsageError (not attached),
    Busy (another process copies there), StorageFailed, Corrupt.
    """
    known = store.connection(name)
    shared = shared_store(store, known, environment, patience)
    lock = store.lock_upload(name)
    if lock is None:
        raise Busy(f"Another process is copying to {name}: it does what there is to do.")
    pace = Pace(rate or None, Event())
    with lock:
        before = store.outbox(name)
        unsent = [one for one, replica in before.items() if replica.is_unsent]
        with _Telling(pace, sum(before[one].size for one in unsent), progress):
            sender = Sender(store, name, shared, pace)
            for checkpoint in reversed(unsent):
                sender.send(checkpoint)
            for checkpoint, replica in before.items():
                if replica.stage is Stage.PARTIAL:
                    sender.look(checkpoint)
                elif replica.stage is Stage.REMOVING:
                    sender.remove(checkpoint, replica)
        new = attaching.refresh(store, known, shared)
    after = store.replicas(unsent)
    copied = [one for one in unsent if one in after and after[one].stage is Stage.REPLICATED]
    left = {one: replica.words for one, replica in after.items() if replica.stage is not Stage.REPLICATED}
    return Synced(len(copied), sum(before[one].size for one in copied), left, new)


class _Telling:
    """Tells of the bytes that a pace has let go, from a thread of its own."""

    def __init__(self, pace: Pace, total: int, progress: Progress | None) -> None:
        self._pace, self._total, self._progress = pace, total, progress
        self._over = Event()
        self._thread = Thread(target=self._tell, daemon=True)

    def _tell(self) -> None:
        while not self._over.wait(0.2):
            if self._progress is not None:
                self._progress(min(self._pace.done, self._total), self._total)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
