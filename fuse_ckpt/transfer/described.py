"""The two objects of ours at an export's destination, as JSON that any tool reads.

The manifest, written last, tells what the export is of: whoever finds it may take the export for whole. The marker,
written first and removed last, tells of which checkpoint an export is under way.
"""

from __future__ import annotations

import json
from math import isfinite

import msgspec
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import Corrupt
from fuse_ckpt.model import Entry, Manifest, Metadata
from fuse_ckpt.transfer.selection import check_inside

FORMAT = 1
LIMIT = 256 << 20  # bytes of a manifest: a million files


class Export(Struct, frozen=True, omit_defaults=True):
    """What an export holds. `manifest`: the checkpoint and its entries, those alone that were exported.

    `keys`: the names of objects that are not called as their files are. `copies`: symlinks that are there as a copy of
    the file they lead to; the others are not there at all. `verified`: "read back", or "sizes".
    """

    manifest: Manifest
    keys: dict[str, str] = {}
    copies: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    verified: str = "read back"


def described(export: Export) -> bytes:
    """The manifest object of an export. What is this machine's own affair is left out."""
    head = replace(
        export.manifest.checkpoint, draft="", run=None, origin=None, tags=(), pinned=False, settled=False,
        metadata=_finite(export.manifest.checkpoint.metadata),
    )  # fmt: skip
    body = msgspec.to_builtins(replace(export, manifest=Manifest(head, export.manifest.entries)))
    document = {"format": FORMAT, "blake3": _digest(body), "export": body}
    return json.dumps(document, indent=1).encode() + b"\n"


def understood(data: bytes, what: str) -> Export:
    """The export that `described` wrote. Errors: Corrupt, naming `what`."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise Corrupt(f"{what} is of a newer format ({document['format']!r}): a newer fuse-ckpt reads it.")
        body = document["export"]
        export = msgspec.convert(body, Export)
    except (ValueError, TypeError, LookupError, RecursionError):
        raise Corrupt(f"{what} is no manifest of an export, or is damaged.") from None
    if document.get("blake3") != _digest(body):
        raise Corrupt(f"{what} is damaged: its checksum does not fit.")
    check_inside(export.manifest.entries)
    return export


def marked(checkpoint_id: str) -> bytes:
    """The marker object of an export that is under way."""
    return json.dumps({"format": FORMAT, "exporting": checkpoint_id}).encode() + b"\n"


def marked_id(data: bytes | None) -> str | None:
    """The id of the checkpoint that a marker names; None where it is none of ours."""
    try:
        found = json.loads(data or b"")["exporting"]
    except (ValueError, TypeError, LookupError):
        return None
    return found if isinstance(found, str) else None


def key_of(entry: Entry, export: Export) -> str:
    """The name, below the destination, of an entry's object."""
    return export.keys.get(entry.path, entry.path)


def _finite(said: Metadata) -> Metadata:
    """Without the losses that JSON cannot carry."""
    losses = {name: getattr(said, name) for name in ("train_loss", "eval_loss")}
    return replace(said, **{name: None for name, loss in losses.items() if loss is not None and not isfinite(loss)})


def _digest(body: object) -> str:
    """BLAKE3-256 of the JSON of `body` with sorted keys and no space: what any tool can compute again."""
    return blake3(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
