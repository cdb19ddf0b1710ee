"""Rows as columns, and back: the one place that knows the types of the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from arro3.core import Array, DataType, Field, RecordBatch, RecordBatchReader, Schema, list_array

from .rows import Row

BATCH = 4096  # rows

_INT = DataType.int64()
_TIME = DataType.timestamp("us", tz="UTC")
_TEXTS = DataType.list(Field("element", DataType.string(), nullable=True))
_TYPES = {
    "step": _INT,
    "epoch": DataType.float64(),
    "train_loss": DataType.float64(),
    "eval_loss": DataType.float64(),
    "tensors": _INT,
    "inference_ready": DataType.bool(),
    "resumable": DataType.bool(),
    "created": _TIME,
    "committed": _TIME,
    "size_bytes": _INT,
    "files": _INT,
    "nodes": _INT,
    "node_names": _TEXTS,
    "generation": _INT,
}  # all else is text
_NULLABLE = frozenset({
    "step", "epoch", "train_loss", "eval_loss", "model", "version", "format", "tensors", "parent", "run"
})  # fmt: skip

NAMES = Row.__struct_fields__
SCHEMA = Schema([Field(name, _TYPES.get(name, DataType.string()), nullable=name in _NULLABLE) for name in NAMES])


def reader(packed: list[bytes]) -> RecordBatchReader:
    """The rows, each as msgpack, as what a table is written from; `packed` is empty then, so that they are held once.

    All of them are made before any is written: what deltalake had to call us for, in a thread of its own, would wait
    for whoever reads another table in the meantime, and that one for the thread.
    """
    decoder = msgspec.msgpack.Decoder(Row)
    batches = []
    while packed:
        rows = [decoder.decode(one) for one in packed[-BATCH:]]
        del packed[-BATCH:]
        batches.append(RecordBatch.from_arrays([_array(name, rows) for name in NAMES], schema=SCHEMA))
    return RecordBatchReader.from_batches(SCHEMA, batches)


def packed_rows(batch: RecordBatch) -> Iterator[tuple[str, bytes]]:
    """The rows of a part of a table: id, and the row as msgpack. Errors: TypeError, ValueError (not of our types)."""
    columns = [_values(batch, name) for name in NAMES]
    for values in zip(*columns, strict=True):
        yield values[0], pack(msgspec.convert(values, Row))


def pack(row: Row) -> bytes:
    """The row in a tenth of the memory; the same bytes for the same row."""
    return msgspec.msgpack.encode(row)


def _array(name: str, rows: Sequence[Row]) -> Array:
    values = [getattr(row, name) for row in rows]
    kind = _TYPES.get(name, DataType.string())
    if kind == _TEXTS:
        ends = [0]
        for texts in values:
            ends.append(ends[-1] + len(texts))
        flat = Array([text for texts in values for text in texts], DataType.string())
        return _cast(list_array(Array(ends, DataType.int32()), flat), _TEXTS)
    return _cast(Array(values, _INT), _TIME) if kind == _TIME else Array(values, kind)


def _values(batch: RecordBatch, name: str) -> list[Any]:
    column = batch.column(name)
    found: list[Any] = (column.cast(_INT) if _TYPES.get(name) == _TIME else column).to_pylist()
    return found


def _cast(array: Any, kind: DataType) -> Array:
    done: Array = array.cast(kind)
    return done
