"""The shared object store of a connection that is attached."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from msgspec.structs import replace

from fuse_ckpt.errors import UsageError
from fuse_ckpt.model import Checkpoint, Connection, Manifest, Provider, State
from fuse_ckpt.sharing import Decision, SharedStore, Union
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Place, Remote, place_of

DEFAULT_PREFIX = "fuse-ckpt"  # below the connection's bucket or directory, unless --path says otherwise
NODES_NAMED = 4  # more of them are told as the first and the last


def shared_store(store: Store, known: Connection, environment: Mapping[str, str], patience: float) -> SharedStore:
    """The object store that `known` is attached to; nothing is asked of it yet. Errors: UsageError (it is not)."""
    if known.attached is None:
        raise UsageError(f'Storage connection {known.name} is not attached: "fuse-ckpt storage attach {known.name}".')
    place = place_at(known, known.attached)
    remote = Remote(known, place.bucket, environment, patience)
    cache = store.layout.root / "shared" / known.name
    cache.mkdir(0o700, parents=True, exist_ok=True)
    return SharedStore(remote, place, owner=f"{socket.gethostname()}:{store.layout.root}", cache=cache)


def place_at(known: Connection, path: str | None) -> Place:
    """Where `path`, or else the default, leads. Errors: UsageError."""
    if path is None:
        if known.provider is not Provider.FILE and known.bucket is None:
            raise UsageError(f"Connection {known.name} names no bucket: give --path BUCKET/PREFIX.")
        path = "/".join(part for part in (known.bucket, DEFAULT_PREFIX) if part)
    return place_of(known, path, "--path")


def head_of(decision: Decision, storage: str) -> Checkpoint:
    """A committed checkpoint of the object store, as one of this store; its number is given there."""
    assert decision.shape is not None
    return Checkpoint(
        id=decision.id, job=decision.job, name=decision.name, shape=decision.shape, ordinal=0,
        node=_nodes(decision), state=State.AVAILABLE, created_ns=decision.created_ns,
        committed_ns=decision.sealed_ns, size=decision.size, files=decision.files, metadata=decision.metadata,
        parent=decision.parent, run=decision.run, settled=True, remote=storage,
    )  # fmt: skip


def manifest_of(union: Union, storage: str) -> Manifest:
    """A committed checkpoint with all that its nodes have written."""
    return Manifest(
        replace(head_of(union.decision, storage), described=True),
        tuple(file.entry for file in union.files),
        tuple(file.entry for file in union.companions),
    )


def _nodes(decision: Decision) -> str:
    """The NODE of a checkpoint: "0", "0,1,2,3", "0…15"."""
    names = list(dict.fromkeys(part.node for part in decision.parts))
    return ",".join(names) if len(names) <= NODES_NAMED else f"{names[0]}…{names[-1]}"
