"""Values as objects, and back. Nothing that is read here is trusted.

An object is two lines of JSON: what it is, with the BLAKE3-256 of the second line; and the value. Tools that read JSON
one value after another read both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from typing import Any, NoReturn, TypeVar

import msgspec
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import Corrupt
from fuse_ckpt.model import Kind, Metadata
from fuse_ckpt.transfer import check_inside

from . import keys
from .values import Decision, Format, Pack, Part, PartFile, Tombstone, Verdict

VERSION = 1
LIMIT = 256 << 20  # bytes of a part: about a million files
SMALL = 32 << 20  # bytes of anything else; a decision of 100,000 nodes has 20 MB
_EMPTY = blake3(b"").hexdigest()
_KINDS: dict[type[Struct], str] = {
    Format: "format",
    Part: "part",
    Decision: "decision",
    Tombstone: "tombstone",
    Pack: "pack",
}

T = TypeVar("T", bound=Struct)


class _Head(Struct, frozen=True):
    format: int
    kind: str
    blake3: str


_HEAD = msgspec.json.Decoder(_Head)


def written(value: Struct) -> bytes:
    """The object that says `value`: the same bytes for the same value, whoever writes it."""
    body = _json(_finite(value))
    head = _Head(VERSION, _KINDS[type(value)], blake3(body).hexdigest())
    return msgspec.json.encode(head) + b"\n" + body + b"\n"


def understood(data: bytes, kind: type[T], what: str) -> T:
    """The value that `written` made an object of. Errors: Corrupt, naming `what`."""
    head, body = _opened(data, what)
    if head.format != VERSION:
        raise Corrupt(f"{what} is of another format ({head.format}): a newer fuse-ckpt reads it.")
    if head.kind != _KINDS[kind] or head.blake3 != blake3(body).hexdigest():
        raise Corrupt(f"{what} is damaged: its checksum does not fit.")
    try:
        value = _decoded(body, kind)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Corrupt(f"{what} does not say what a {_KINDS[kind]} has to.") from None
    if isinstance(value, Part):
        _check_part(value, what)
    if isinstance(value, Decision):
        _check_decision(value, what)
    return value


def is_whole(data: bytes) -> bool:
    """Whether the object has its own checksum, whatever it says."""
    try:
        head, body = _opened(data, "")
    except Corrupt:
        return False
    return head.blake3 == blake3(body).hexdigest()


def check_part(part: Part) -> Part:
    """`part`, if it can be read again once it is written. Errors: Corrupt."""
    return understood(written(part), Part, "The part")


def _opened(data: bytes, what: str) -> tuple[_Head, bytes]:
    first, _, rest = data.partition(b"\n")
    try:
        return _HEAD.decode(first), rest.removesuffix(b"\n")
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Corrupt(f"{what} is nothing that fuse-ckpt wrote, or is damaged.") from None


def _json(value: Struct) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:  # a path that is no UTF-8: only escapes can carry it
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode()


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError:
        if b"\\ud" not in body:
            raise
        return msgspec.convert(json.loads(body, parse_constant=_refuse), kind)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(value: Struct) -> Struct:
    """Without the losses that JSON cannot carry."""
    said = getattr(value, "metadata", None)
    if not isinstance(said, Metadata):
        return value
    found: dict[str, Any] = {name: getattr(said, name) for name in ("train_loss", "eval_loss", "epoch")}
    lost = {name: None for name, number in found.items() if number is not None and not isfinite(number)}
    return replace(value, metadata=replace(said, **lost)) if lost else value


def _check_part(part: Part, what: str) -> None:
    """Raise Corrupt where a part contradicts itself, or leads anywhere."""
    keys.check_group(part.group)
    if part.group != keys.group_of(part.job, part.attempt, part.name, part.generation):
        raise Corrupt(f"{what} says that it is of another group than it is.")
    if part.rank >= part.nodes or not part.local:
        raise Corrupt(f"{what} is of rank {part.rank} of {part.nodes}, or has no id.")
    for files in (part.files, part.companions):
        if len({file.path for file in files}) != len(files):
            raise Corrupt(f"{what} names a file twice.")
        check_inside([file.entry for file in files])
        _check_files(files, part, what)


def _check_files(files: Sequence[PartFile], part: Part, what: str) -> None:
    for file in files:
        if file.kind is not Kind.FILE:
            right = not (file.size or file.digest or file.key) and bool(file.target) == (file.kind is Kind.SYMLINK)
        elif file.size == 0:
            right = file.digest == _EMPTY and not file.key and not file.target
        else:
            group, rank, digest = keys.source_of(file.key)
            right = digest == file.digest and (group != part.group or rank == part.rank) and not file.target
        if not right or "\0" in file.target:
            raise Corrupt(f"{what} contradicts itself about {file.path!r}.")


def _check_decision(decision: Decision, what: str) -> None:
    keys.check_group(decision.group)
    for group in decision.borrowed:
        keys.check_group(group)
    if decision.verdict is Verdict.ABORT:
        return
    ranks = tuple(part.rank for part in decision.parts)
    if not decision.id or decision.shape is None or ranks != tuple(range(decision.nodes)) or not ranks:
        raise Corrupt(f"{what} commits what it does not tell of.")
