"""The way from a command to the store. A store that is not there yet is an empty one; no question makes it.

A process may have the index open once only: every store here is closed again before a session opens its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import formats
from fuse_ckpt.errors import StorageFailed, UnknownCheckpoint, UnknownJob

if TYPE_CHECKING:
    from fuse_ckpt.cli.settings import Settings
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.session import PendingUnit
    from fuse_ckpt.store import Store

LOOK_PATIENCE = 5.0  # seconds for an object store to answer what is nice to know


@contextmanager
def existing_store(settings: Settings) -> Iterator[Store | None]:
    """The store, or None where nothing is at its path yet. Raises StoreUnusable.

    Records that are damaged are left out of a listing and told on standard error.
    """
    if _is_absent(settings):
        yield None
        return
    from fuse_ckpt.store import Store

    with Store.open(settings.store, create=False) as store:
        yield store
        for problem in store.problems:
            click.echo(formats.visible(problem), err=True)


def _is_absent(settings: Settings) -> bool:
    try:
        return not os.listdir(settings.store)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # Store.open says what is wrong with it


@contextmanager
def store_with_job(settings: Settings, job: str) -> Iterator[Store]:
    """The store, which knows `job`. Raises UnknownJob, StoreUnusable."""
    with existing_store(settings) as store:
        if store is None:
            raise UnknownJob(job)
        store.job(job)
        yield store


@contextmanager
def store_with(settings: Settings, *references: str) -> Iterator[tuple[Store, list[Checkpoint]]]:
    """The store and the checkpoints that the references name, each once.

    Raises UnknownCheckpoint, InvalidReference, StoreUnusable.
    """
    with existing_store(settings) as store:
        if store is None:
            raise UnknownCheckpoint(references[0])
        found = {each.id: each for each in (store.resolve(reference) for reference in references)}
        yield store, list(found.values())


def brought(store: Store, found: Checkpoint, settings: Settings, include: Sequence[str] = ()) -> Checkpoint:
    """The checkpoint with all its bytes here; what is in an object store alone is fetched. Raises StorageFailed.

    `include`: with those of the files alone that fit one of these globs.
    """
    if found.remote is None:
        return found
    from fuse_ckpt import session, transfer
    from fuse_ckpt.cli.resumable import SHORT, resumable

    with resumable(f"from {found.remote} {found.id[-SHORT:]}", settings) as progress:
        bring = partial(session.bring, store, found, settings.environment)
        if not include:
            return bring(progress=progress)
        bring(whole=False)
        digests = {entry.digest for entry in transfer.chosen(store.manifest(found.id).entries, include)}
        return bring(progress=progress, digests=digests)


def described(store: Store, found: Checkpoint, settings: Settings) -> Checkpoint:
    """The checkpoint, with what it is made of known here, if its object store answers; else that is said."""
    if found.remote is None or found.described:
        return found
    from fuse_ckpt import session

    try:
        return session.bring(store, found, settings.environment, whole=False, patience=LOOK_PATIENCE)
    except StorageFailed as error:
        click.echo(formats.visible(f"What files it has is not known here: {error}"), err=True)
        return found


def pending(store: Store, job: str) -> list[PendingUnit]:
    """What the job has written and not committed yet."""
    # Most jobs are at rest; asking about one would import the whole session, 200 ms.
    sealed = store.layout.pending(job)
    if not (store.job_locked(job) or (sealed.is_dir() and any(sealed.iterdir()))):
        return []
    from fuse_ckpt.session import pending_units

    return pending_units(store, job)
