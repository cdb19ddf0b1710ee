"""What commands ask of object stores that are attached. Nothing is imported for it until it is asked: whoever only
mounts or lists pays nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from fuse_ckpt.model import Checkpoint
from fuse_ckpt.store import Store

if TYPE_CHECKING:
    from fuse_ckpt.catalog import Brought

PATIENCE = 20.0  # seconds that one request is tried again for
Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Attached(Struct, frozen=True):
    """Where a connection is attached, and what was found there. `new`: checkpoints that were not listed before."""

    place: str
    new: int
    jobs: int
    exclusive: bool


class Synced(Struct, frozen=True):
    """What `sync` did: copies that are there now, and what is left (id → how it stands)."""

    copied: int
    size: int
    left: dict[str, str]
    new: int  # checkpoints that are listed now, and were not before


def attach(
    store: Store,
    name: str,
    environment: Mapping[str, str],
    *,
    path: str | None = None,
    exclusive: bool = False,
    patience: float = PATIENCE,
) -> Attached:
    """See `fuse_ckpt.session.attaching.attach`."""
    from fuse_ckpt.session import attaching

    return attaching.attach(store, name, environment, patience, path=path, exclusive=exclusive)


def detach(store: Store, name: str, *, force: bool = False) -> tuple[int, int]:
    """See `fuse_ckpt.session.attaching.detach`."""
    from fuse_ckpt.session import attaching

    return attaching.detach(store, name, force=force)


def sync(
    store: Store,
    name: str,
    environment: Mapping[str, str],
    *,
    rate: int | None = None,
    patience: float = PATIENCE,
    progress: Progress | None = None,
) -> Synced:
    """Copy what waits for a connection, here and now, and list what is new there. See `syncing.sync`."""
    from fuse_ckpt.session import syncing

    return syncing.sync(store, name, environment, rate, patience, progress)


def sync_catalog(
    store: Store,
    name: str,
    environment: Mapping[str, str],
    *,
    jobs: tuple[str, ...] = (),
    rebuild: bool = False,
    patience: float = PATIENCE,
) -> Brought:
    """Bring the catalog of an object store to what its decisions say. See `cataloguing.sync`."""
    from fuse_ckpt.session import cataloguing

    return cataloguing.sync(store, name, environment, jobs, patience, rebuild=rebuild)


def bring(
    store: Store,
    checkpoint: Checkpoint,
    environment: Mapping[str, str],
    *,
    patience: float = PATIENCE,
    progress: Progress | None = None,
    whole: bool = True,
    digests: Collection[str] | None = None,
) -> Checkpoint:
    """Have all bytes of a checkpoint, or of some of its files, here. See `bringing.bring`."""
    if checkpoint.remote is None:
        return checkpoint
    from fuse_ckpt.session import bringing

    return bringing.bring(store, checkpoint, environment, patience, progress, whole=whole, digests=digests)
