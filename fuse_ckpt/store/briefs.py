"""What choosing, counting and sorting checkpoints asks of each, in 37 bytes beside its key: without reading its record.

A row is one byte of flags, the size, the step (the lowest number: none), the two losses (NaN: none), and a CRC-32 over
its key and them.
"""

from __future__ import annotations

import math
import struct
from zlib import crc32

from msgspec import Struct

from fuse_ckpt.model import Checkpoint, State

_ROW = struct.Struct("<BQqdd")
_COUNTED = struct.Struct("<BQ")  # its beginning
_SILENT = -(1 << 63)
_CRC = struct.Struct("<I")
_LENGTH = _ROW.size + _CRC.size
_WITH_ITS_CRC = 0x2144DF1C  # the CRC-32 of any bytes that end with their own
_STATES = (State.PENDING, State.AVAILABLE, State.FAILED, State.DELETED)
_RESUMABLE, _WEIGHTS = 4, 8  # the two bits below are the state


class Brief(Struct, frozen=True):
    """A checkpoint in brief. Losses are finite, or None."""

    state: State
    resumable: bool
    weights: bool
    size: int
    step: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None


def of(checkpoint: Checkpoint) -> Brief:
    said = checkpoint.metadata
    return Brief(
        checkpoint.state, said.resumable, said.weights, checkpoint.size, _step(said.step), _finite(said.train_loss),
        _finite(said.eval_loss),
    )  # fmt: skip


def pack(key: bytes, brief: Brief) -> bytes:
    """The row of a brief under `key`."""
    flags = _STATES.index(brief.state) | _RESUMABLE * brief.resumable | _WEIGHTS * brief.weights
    losses = (math.nan if loss is None else loss for loss in (brief.train_loss, brief.eval_loss))
    row = _ROW.pack(flags, brief.size, _SILENT if brief.step is None else brief.step, *losses)
    return row + _CRC.pack(crc32(row, crc32(key)))


def unpack(key: bytes, row: bytes) -> Brief | None:
    """The brief of a row; None where it is damaged, or was written before there were any."""
    if not _is_whole(key, row):
        return None
    flags, size, step, train_loss, eval_loss = _ROW.unpack_from(row)
    return Brief(
        _STATES[flags & 3], bool(flags & _RESUMABLE), bool(flags & _WEIGHTS), size, None if step == _SILENT else step,
        None if train_loss != train_loss else train_loss, None if eval_loss != eval_loss else eval_loss,
    )  # fmt: skip


def count(key: bytes, row: bytes) -> tuple[State, int] | None:
    """The state and the size of a row, at a third of the time; None as above."""
    if len(row) != _LENGTH or crc32(row, crc32(key)) != _WITH_ITS_CRC:  # _is_whole, without the call
        return None
    flags, size = _COUNTED.unpack_from(row)
    return _STATES[flags & 3], size


def _is_whole(key: bytes, row: bytes) -> bool:
    return len(row) == _LENGTH and crc32(row, crc32(key)) == _WITH_ITS_CRC


def _step(step: int | None) -> int | None:
    return step if step is not None and abs(step) < -_SILENT else None


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
