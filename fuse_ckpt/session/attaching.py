"""`storage attach` and what follows from it: checkpoints of an object store listed here."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from fuse_ckpt.errors import Busy, CheckpointLeased, Corrupt, NotFound, UnknownCheckpoint, UsageError
from fuse_ckpt.model import Checkpoint, Connection, Manifest, Replica, Stage
from fuse_ckpt.session.elsewhere import Attached
from fuse_ckpt.session.shared import head_of, manifest_of, place_at, shared_store
from fuse_ckpt.sharing import Decision, GroupState, SharedStore
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Remote, probe

_log = logging.getLogger(__name__)

EAGER_NODES = 32  # of more of them no node reads all the others' parts before somebody asks: that would be their square


def attach(
    store: Store,
    name: str,
    environment: Mapping[str, str],
    patience: float,
    *,
    path: str | None = None,
    exclusive: bool = False,
) -> Attached:
    """Attach a connection at `path` (None: where it is attached, or the default) and list what lies there.

    Errors: UnknownConnection, UsageError (attached elsewhere; other things lie there), StorageFailed (also: the store
    cannot be shared), Corrupt.
    """
    known = store.connection(name)
    place = place_at(known, path if path is not None else known.attached)
    if known.attached not in (None, str(place)):
        raise UsageError(f"{name} is attached at {known.attached}: storage detach {name} first.")
    Remote(known, place.bucket, environment, patience).refuse_ours(place.prefix, store.layout.root, "--path")
    now_ns = time.time_ns()
    attached = replace(known, attached=str(place), exclusive=exclusive or known.exclusive)
    shared = shared_store(store, attached, environment, patience)
    try:
        found = shared.open(write=False)  # whoever may only read can resume from what is there
    except NotFound:
        probed = probe(Remote(attached, place.bucket, environment, patience), place)
        found = shared.establish(probed, now_ns, exclusive=attached.exclusive)
        attached = replace(attached, probed_ns=now_ns)
    attached = replace(attached, creates_once=found.creates_once, exclusive=found.exclusive)
    store.replace_connection(attached)
    new = refresh(store, attached, shared)
    return Attached(str(place), new, len(shared.jobs()), found.exclusive)


def detach(store: Store, name: str, *, force: bool = False) -> tuple[int, int]:
    """List and copy nothing of a connection any more; what lies there stays. How many checkpoints are not listed any
    more, and how many copies were given up.

    Errors: UnknownConnection, UsageError (not attached), Busy (something waits to be copied, and no `force`;
    a process copies at this moment).
    """
    known = store.connection(name)
    if known.attached is None:
        raise UsageError(f"Storage connection {name} is not attached.")
    waiting = store.waiting(name)
    if waiting and not force:
        raise Busy(f"{len(waiting)} checkpoints wait to be copied to {name}: storage sync {name}, or detach --force.")
    lock = store.lock_upload(name)
    if lock is None:
        raise Busy(f"Another process is copying to {name}: end the mounts that replicate to it first.")
    with lock:
        given_up = store.forget_outbox(name)
        gone = store.forget_remote([one.id for one in store.listed_from(name)])
        store.replace_connection(replace(known, attached=None))
    return gone, given_up


def refresh(store: Store, known: Connection, shared: SharedStore, jobs: Iterable[str] | None = None) -> int:
    """List what has come into the object store since, and what has gone no more; how many have come.

    Errors: StorageFailed, Corrupt.
    """
    return sum(_refresh_job(store, known.name, shared, job) for job in (shared.jobs() if jobs is None else jobs))


def _refresh_job(store: Store, storage: str, shared: SharedStore, job: str) -> int:
    known = set(store.ids())
    there = shared.list(job)
    _forget_deleted(store, storage, shared, job, {one.id for one in there})
    fresh = sorted((one for one in there if one.id not in known), key=lambda one: one.id)
    removing = store.outbox(storage).keys()
    alone, joined = [], []
    for decision in fresh:
        if decision.id in removing:
            continue
        local = next((part.local for part in decision.parts if _is_part(store, part.local, decision)), None)
        if local is None:
            alone.append((head_of(decision, storage), replica_of(decision, storage)))
        else:
            joined.append((local, decision))
    for local, decision in joined:
        join(store, storage, shared, local, decision)
    return len(_add(store, storage, alone)) + len(joined)


def _is_part(store: Store, checkpoint: str, decision: Decision) -> bool:
    """Whether a checkpoint of this store is the part that a decision names: by our own word, not by what lies there."""
    replica = store.replica(checkpoint)
    return replica is not None and replica.group == decision.group and replica.nodes == decision.nodes


def _add(store: Store, storage: str, found: Sequence[tuple[Checkpoint, Replica]]) -> list[Checkpoint]:
    """List them; one that cannot be a checkpoint keeps no other from being listed."""
    try:
        return store.add_remote(found)
    except Corrupt as error:
        if len(found) == 1:
            _log.warning("%s: %s", storage, error)
            return []
        return [one for each in found for one in _add(store, storage, [each])]


def _forget_deleted(store: Store, storage: str, shared: SharedStore, job: str, there: set[str]) -> None:
    """A listing may be older than what it lacks: what is not in it is asked for by name."""
    missing = [one.id for one in store.listed_from(storage, job) if one.id not in there]
    for checkpoint, replica in store.replicas(missing).items():
        if shared.standing(job, replica.group).state in (GroupState.DELETED, GroupState.ABSENT):
            store.forget_remote([checkpoint])


def join(store: Store, storage: str, shared: SharedStore, local: str, decision: Decision) -> bool:
    """What this node has written of a checkpoint of many nodes is all of it from now on; False where it is in use, or
    deleted."""
    whole = Manifest(head_of(decision, storage), ())
    if decision.nodes <= EAGER_NODES:
        whole = manifest_of(shared.read(decision.job, decision.group), storage)
    try:
        store.merge(local, whole, replica_of(decision, storage))
    except (CheckpointLeased, UnknownCheckpoint):
        return False
    return True


def replica_of(decision: Decision, storage: str) -> Replica:
    return Replica(
        storage, Stage.REPLICATED, decision.sealed_ns, nodes=decision.nodes, attempt=decision.attempt,
        generation=decision.generation, group=decision.group, sent=decision.size, size=decision.size,
        parts=tuple(part.rank for part in decision.parts),
    )  # fmt: skip
