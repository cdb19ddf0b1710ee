"""Checkpoints leave the store, for an ordinary directory or an object store, and files from there come in."""

from __future__ import annotations

from fuse_ckpt.transfer import connecting
from fuse_ckpt.transfer.connecting import PATIENCE
from fuse_ckpt.transfer.copying import counter
from fuse_ckpt.transfer.export import Exported, export
from fuse_ckpt.transfer.fetch import Fetched, fetch
from fuse_ckpt.transfer.foreign import FAMILIES, Access, access_of
from fuse_ckpt.transfer.incoming import RemoteSource
from fuse_ckpt.transfer.lanes import Stop, run
from fuse_ckpt.transfer.local import LocalSource
from fuse_ckpt.transfer.loose import fetch_loose
from fuse_ckpt.transfer.names import Place, check_checkpoint_name, check_connection_name, place_of
from fuse_ckpt.transfer.probing import PROBE, Probed, probe
from fuse_ckpt.transfer.push import push
from fuse_ckpt.transfer.remote import Found, Remote
from fuse_ckpt.transfer.selection import check_inside, chosen

check_connection = connecting.check

__all__ = [
    "FAMILIES",
    "PATIENCE",
    "PROBE",
    "Access",
    "Exported",
    "Fetched",
    "Found",
    "LocalSource",
    "Place",
    "Probed",
    "Remote",
    "RemoteSource",
    "Stop",
    "access_of",
    "check_checkpoint_name",
    "check_connection",
    "check_connection_name",
    "check_inside",
    "chosen",
    "counter",
    "export",
    "fetch",
    "fetch_loose",
    "place_of",
    "probe",
    "push",
    "run",
]
