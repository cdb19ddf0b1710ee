"""A node's memory of decisions, which never change: a listing asks for those alone that it has not seen."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import msgspec
from blake3 import blake3

_CHECKSUM = 32  # bytes
_DECODER = msgspec.msgpack.Decoder(dict[str, bytes])


class Remembered:
    """The decisions of a job, as the bytes of their objects, in one file of `directory`. None: nothing is remembered.

    What cannot be read is forgotten, and what cannot be written is asked for again: nothing depends on it.
    """

    def __init__(self, directory: Path | None, store_id: str, job: str) -> None:
        name = blake3(f"{store_id}\0{job}".encode()).hexdigest(length=16)
        self._path = directory / f"{name}.decisions" if directory is not None else None

    def load(self) -> dict[str, bytes]:
        """By group."""
        if self._path is None:
            return {}
        try:
            data = self._path.read_bytes()
            if blake3(data[_CHECKSUM:]).digest() == data[:_CHECKSUM]:
                return _DECODER.decode(memoryview(data)[_CHECKSUM:])
        except (OSError, msgspec.DecodeError):
            pass
        return {}

    def save(self, decisions: Mapping[str, bytes]) -> None:
        if self._path is None:
            return
        payload = msgspec.msgpack.encode(dict(decisions))
        half_made = self._path.with_suffix(f".{uuid4().hex}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                half_made.write_bytes(blake3(payload).digest() + payload)
                os.replace(half_made, self._path)
            finally:
                half_made.unlink(missing_ok=True)
