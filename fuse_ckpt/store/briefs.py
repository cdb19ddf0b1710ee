"""What choosing and counting a job's checkpoints asks of each, in 29 bytes beside its key: without reading its record.

A row is one byte of flags, the size, the two losses (NaN: none), and a CRC-32 over its key and them.
"""

from __future__ import annotations

import math
import struct
from zlib import crc32

from msgspec import Struct

from fuse_ckpt.model import Checkpoint, State

_ROW = struct.Struct("<BQdd")
_CRC = struct.Struct("<I")
_STATES = (State.PENDING, State.AVAILABLE, State.FAILED, State.DELETED)
_RESUMABLE, _WEIGHTS = 4, 8  # the two bits below are the state


class Brief(Struct, frozen=True):
    """A checkpoint in brief. Losses are finite, or None."""

    state: State
    resumable: bool
    weights: bool
    size: int
    train_loss: float | None = None
    eval_loss: float | None = None


def of(checkpoint: Checkpoint) -> Brief:
    said = checkpoint.metadata
    return Brief(
        checkpoint.state,
        said.resumable,
        said.weights,
        checkpoint.size,
        _finite(said.train_loss),
        _finite(said.eval_loss),
    )


def pack(key: bytes, brief: Brief) -> bytes:
    """The row of a brief under `key`."""
    flags = _STATES.index(brief.state) | _RESUMABLE * brief.resumable | _WEIGHTS * brief.weights
    losses = (math.nan if loss is None else loss for loss in (brief.train_loss, brief.eval_loss))
    row = _ROW.pack(flags, brief.size, *losses)
    return row + _CRC.pack(crc32(row, crc32(key)))


def unpack(key: bytes, row: bytes) -> Brief | None:
    """The brief of a row; None where it is damaged, or was written before there were any."""
    if len(row) != _ROW.size + _CRC.size or _CRC.unpack_from(row, _ROW.size)[0] != crc32(row[: _ROW.size], crc32(key)):
        return None
    flags, size, train_loss, eval_loss = _ROW.unpack_from(row)
    return Brief(
        _STATES[flags & 3], bool(flags & _RESUMABLE), bool(flags & _WEIGHTS), size,
        None if train_loss != train_loss else train_loss, None if eval_loss != eval_loss else eval_loss,
    )  # fmt: skip


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
