"""Records and manifests as bytes.

A record is 8 bytes of BLAKE3 over its key and payload, then the payload: LMDB has no checksum of its own, and a flipped
bit on the disk would be read back as a fact. The payload is one byte that tells the form, then MessagePack, or JSON
where a path holds bytes that are not UTF-8 (surrogate escapes, which MessagePack cannot carry and JSON can).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from blake3 import blake3

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Manifest

CHECKSUM = 8  # bytes
MSGPACK = b"m"
JSON = b"j"

T = TypeVar("T")


def seal(key: bytes, value: object) -> bytes:
    """The record of `value` under `key`."""
    try:
        payload = MSGPACK + msgspec.msgpack.encode(value)
    except UnicodeEncodeError:
        payload = JSON + json.dumps(msgspec.to_builtins(value)).encode()
    return _checksum(key, payload) + payload


def is_sealed(key: bytes, record: bytes) -> bool:
    """Whether a record has the checksum that `seal` gave it."""
    return record[:CHECKSUM] == _checksum(key, record[CHECKSUM:])


def unseal(key: bytes, record: bytes, kind: type[T], describe: Callable[[bytes], str]) -> T:
    """The value of a record; CorruptRecord, naming it by `describe(key)`, where its bytes are not what `seal` made."""
    payload = record[CHECKSUM:]
    if record[:CHECKSUM] != _checksum(key, payload):
        raise CorruptRecord(f"The index's record of {describe(key)} is damaged: its checksum does not fit.")
    try:
        if payload[:1] == JSON:
            return msgspec.convert(json.loads(payload[1:]), kind)
        value: T = _decoder(cast(Hashable, kind)).decode(memoryview(payload)[1:])
        return value
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptRecord(f"The index's record of {describe(key)} cannot be read: {error}.") from error


def manifest_to_json(manifest: Manifest) -> bytes:
    """A manifest as indented JSON for manifests/<id>.json."""
    try:
        return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(manifest), indent=1).encode() + b"\n"


def manifest_from_json(data: bytes, what: str) -> Manifest:
    """The manifest that `manifest_to_json` wrote; CorruptRecord naming `what` otherwise."""
    try:
        return msgspec.convert(json.loads(data), Manifest)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise CorruptRecord(f"The manifest {what} cannot be read: {error}.") from error


@cache
def _decoder(kind: Hashable) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def _checksum(key: bytes, payload: bytes) -> bytes:
    return blake3(key).update(payload).digest(length=CHECKSUM)
