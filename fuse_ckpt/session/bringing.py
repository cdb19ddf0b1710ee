"""A checkpoint's bytes from an object store into this one, each proved before it counts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from fuse_ckpt.errors import CorruptBlob, FuseCkptError, StorageFailed
from fuse_ckpt.faults import fault
from fuse_ckpt.model import Checkpoint, Stage
from fuse_ckpt.session.elsewhere import Progress
from fuse_ckpt.session.shared import manifest_of, shared_store
from fuse_ckpt.sharing import PartFile, SharedStore, half_made
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Stop, counter, run
from fuse_ckpt.wording import size

Advance = Callable[[int], None]

LARGE = 16 << 20  # bytes; a larger file is read in parts, some at once, and so one after another
SMALL_AT_ONCE = 8  # files
FETCH = "fetch-"
KEPT = 7 * 86_400.0  # seconds that a half-made file is left to who fetches it
ROOM = 64 << 20  # bytes that are to stay free on the disk


def bring(
    store: Store,
    checkpoint: Checkpoint,
    environment: Mapping[str, str],
    patience: float,
    progress: Progress | None,
    *,
    whole: bool = True,
    digests: Collection[str] | None = None,
) -> Checkpoint:
    """Have all bytes of a checkpoint here; what is here already is not fetched. The checkpoint, as it is then.

    Not `whole`: only what it is made of is known then, and a mount can show it. `digests`: those of its files alone.

    Errors: StorageFailed, CorruptBlob (what lies there is damaged), Corrupt, UnknownCheckpoint (deleted meanwhile, here
    or there), FuseCkptError (no room).
    """
    with store.lease(checkpoint.id, f"a fetch, process {os.getpid()}"):
        source = Source(store, checkpoint, environment, patience)
        if not whole:
            return store.checkpoint(checkpoint.id)
        absent = store.absent(checkpoint.id)
        wanted = {one: size for one, size in absent.items() if digests is None or one in digests}
        source.fetch(wanted, progress)
        return store.arrived(checkpoint.id)


class Source:
    """The files of one checkpoint in the object store; what it is made of is known here from now on."""

    def __init__(self, store: Store, checkpoint: Checkpoint, environment: Mapping[str, str], patience: float) -> None:
        replica = store.replica(checkpoint.id)
        if checkpoint.remote is None or replica is None or replica.stage is not Stage.REPLICATED:
            raise StorageFailed(f"Checkpoint {checkpoint.id} has no copy in an object store.")
        _sweep(store)
        self._store = store
        self._checkpoint = checkpoint
        self._shared: SharedStore = shared_store(store, store.connection(checkpoint.remote), environment, patience)
        union = self._shared.read(checkpoint.job, replica.group)
        store.learn(manifest_of(union, checkpoint.remote))
        self._files = {file.digest: file for file in (*union.files, *union.companions) if file.digest}

    def fetch(self, wanted: Mapping[str, int], progress: Progress | None) -> None:
        """Have these bytes (digest → size) here."""
        here = sum(half_made(self._path(digest)) for digest in wanted)
        _check_room(self._store.layout.root, sum(wanted.values()) - here)
        advance = counter(sum(wanted.values()), progress)

        def get(digest: str) -> None:
            self.fetch_one(digest, advance)

        present = self._store.absent(self._checkpoint.id).keys()
        for digest in self._files.keys() - present:  # another checkpoint's: they are to stay for this one, too
            self._store.receive(self._checkpoint.id, digest)
        large = sorted((one for one in wanted if wanted[one] >= LARGE), key=lambda one: wanted[one])
        run(min(1, len(large)), large, get, Stop())
        small = [one for one in wanted if wanted[one] < LARGE]
        run(min(SMALL_AT_ONCE, len(small)), small, get, Stop())

    def fetch_one(self, digest: str, advance: Advance) -> None:
        """Have the bytes of one digest here; where another process fetches them, wait for it.

        What a fetch that was cut off has left is gone on with.
        """
        path = self._path(digest)
        with self._store.lock_fetch(digest):
            if self._store.receive(self._checkpoint.id, digest):
                shutil.rmtree(path.parent, ignore_errors=True)
                advance(self._files[digest].size)
                return
            path.parent.mkdir(0o700, exist_ok=True)
            os.utime(path.parent)  # somebody has come back for it
            self._get(self._files[digest], path, advance)

    def _path(self, digest: str) -> Path:
        return self._store.layout.incoming / f"{FETCH}{digest}" / "bytes"

    def _get(self, file: PartFile, path: Path, advance: Advance) -> None:
        try:
            if path.exists():  # whoever fetched it was killed just then
                advance(file.size)
            else:
                self._shared.fetch_file(self._checkpoint.job, file, path, advance)
        except BaseException:
            with suppress(OSError):
                path.parent.rmdir()  # if nothing is to be kept
            raise
        fault("bring:receive")
        try:
            if not self._store.receive(self._checkpoint.id, file.digest, path):
                raise CorruptBlob(f"{file.path} was fetched and is not here: its checkpoint has changed.")
        finally:
            shutil.rmtree(path.parent)


def _sweep(store: Store) -> None:
    """Remove what fetches that were killed have left half-made, and nobody has come back for."""
    before = time.time() - KEPT
    for path in [one for one in store.layout.incoming.glob(f"{FETCH}*") if _is_older(one, before)]:
        with store.lock_fetch(path.name.removeprefix(FETCH)):
            shutil.rmtree(path, ignore_errors=True)


def _is_older(path: Path, before: float) -> bool:
    try:
        return path.lstat().st_mtime < before
    except FileNotFoundError:  # whoever made it is done
        return False


def _check_room(directory: Path, needed: int) -> None:
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if needed + ROOM > free:
        raise FuseCkptError(
            f"{directory} has {size(free)} free, and {size(needed)} are to be fetched: make room (checkpoint gc), or "
            "take another --store."
        )
