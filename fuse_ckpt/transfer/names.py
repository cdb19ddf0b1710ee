"""Names of connections and of pushed checkpoints, places in object stores, and keys for files. No I/O."""

from __future__ import annotations

import re

from msgspec import Struct

from fuse_ckpt.errors import InvalidName, UsageError
from fuse_ckpt.model import Connection, Provider

MANIFEST = "fuse-ckpt.json"  # written last: where it is, the export is whole
MARKER = "fuse-ckpt.partial.json"  # written first, removed after the manifest: an export that is under way
NAME_MAX = 200  # bytes
KEY_MAX = 1024  # bytes; S3's and GCS's limit, and Azure's in characters

_CONNECTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._$-]{0,221}", re.ASCII)  # S3's, GCS's and Azure's together
_LIKE_AN_ID = re.compile(r"[0-9a-f-]{4,}", re.IGNORECASE)
# What some object store or client refuses, changes, or takes for something else.
_ESCAPED = re.compile(r"%(?=[0-9A-Fa-f]{2})|[\x00-\x1f\x7f-\x9f\\\ud800-\udfff\ufffe\uffff]")


class Place(Struct, frozen=True):
    """Where in an object store: a bucket ("" for a directory's), and the prefix below it ("": all of it)."""

    bucket: str
    prefix: str

    def key(self, name: str) -> str:
        """The key of the object `name` below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        return "/".join(part for part in (self.bucket, self.prefix) if part)


def check_connection_name(name: str) -> str:
    """Return `name` if a connection can be called so, else raise InvalidName."""
    if len(name) > NAME_MAX or not _CONNECTION.fullmatch(name):
        raise InvalidName(f"A connection cannot be called {name!r}: use letters, digits, '-', '_' and '.'.")
    return name


def check_bucket(name: str) -> str:
    """Return `name` if a bucket (container) can be called so, else raise InvalidName: it becomes a part of a URL."""
    if not _BUCKET.fullmatch(name):
        raise InvalidName(f"No bucket is called {name!r}: letters, digits, '-', '_' and '.' it may have.")
    return name


def check_checkpoint_name(name: str) -> str:
    """Return `name` if a pushed checkpoint can be called so and be meant by it, else raise InvalidName."""
    if not name or len(name.encode(errors="surrogateescape")) > NAME_MAX:
        raise InvalidName(f"A checkpoint's name has 1 to {NAME_MAX} bytes: {name[:20]!r} has not.")
    bad = next((char for char in name if char in "/:@" or not char.isprintable()), None)
    if bad is not None:
        raise InvalidName(f"Checkpoint name {name!r} has {bad!r} in it, which means something else in a reference.")
    if name[0] in "-." or name != name.strip():
        raise InvalidName(f"Checkpoint name {name!r} begins with '-' or '.', or has space around it.")
    if _LIKE_AN_ID.fullmatch(name):
        raise InvalidName(f"Checkpoint name {name!r} looks like a piece of an id: put another letter into it.")
    return name


def place_of(connection: Connection, path: str, option: str) -> Place:
    """What `<bucket>/<prefix>` means; for a directory the whole is below its root. Errors: UsageError."""
    stripped = path.strip("/") if connection.provider is not Provider.FILE else path.removesuffix("/")
    parts = stripped.split("/")
    if any(part in ("", ".", "..") for part in parts) or key_of(stripped) != stripped:
        shape = "a path below its directory" if connection.provider is Provider.FILE else "BUCKET/PREFIX"
        raise UsageError(f"{option} {path!r} is not {shape}: give plain names with '/' between them.")
    if connection.provider is Provider.FILE:
        return Place("", stripped)
    return Place(check_bucket(parts[0]), "/".join(parts[1:]))


def key_of(path: str) -> str:
    """The object's name for a file: its path, with what cannot be in a key as %XX of its UTF-8 (or raw) bytes.

    Two paths never have one name, and none is called as our own objects are.
    """
    key = _ESCAPED.sub(_percent, path)
    return f"%{ord(key[0]):02X}{key[1:]}" if key in (MANIFEST, MARKER) else key


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode(errors="surrogateescape"))
