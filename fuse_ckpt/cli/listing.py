"""Checkpoints as rows: the one place where the columns, the JSON keys and their order are decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TextIO

from fuse_ckpt.cli import formats, render

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint, Replica
    from fuse_ckpt.session import PendingUnit

Record = dict[str, object]  # the JSON form of one row

JOB_TITLE = "List of Checkpoints for a Training Job"
COLUMNS = {
    "ID": "id",
    "NAME": "name",
    "NODE": "node",
    "STEP": "step",
    "TRAIN LOSS": "trainLoss",
    "EVAL LOSS": "evalLoss",
    "MODEL": "model",
    "VERSION": "version",
    "INFERENCE READY": "inferenceReady",
    "TIMESTAMP": "timestamp",
}
WIDE_COLUMNS = {
    **COLUMNS,
    "SIZE": "sizeBytes",
    "STATUS": "status",
    "RESUMABLE": "resumable",
    "TAGS": "tags",
    "REPLICATED": "replicated",
}
STORE_COLUMNS = {"ID": "id", "JOB": "job", **{k: v for k, v in COLUMNS.items() if k != "ID"}, "STATUS": "status"}

TRASH_COLUMNS = {**STORE_COLUMNS, "REMAINING": "remaining"}

_WRITTEN: Mapping[str, Callable[..., str]] = {
    "trainLoss": formats.loss,
    "evalLoss": formats.loss,
    "sizeBytes": formats.size,
    "freesBytes": formats.size,
}


def record(checkpoint: Checkpoint) -> Record:
    """A committed checkpoint's row."""
    said = checkpoint.metadata
    return {
        "id": checkpoint.id,
        "name": checkpoint.name,
        "node": checkpoint.node,
        "step": said.step,
        "trainLoss": formats.finite(said.train_loss),
        "evalLoss": formats.finite(said.eval_loss),
        "model": said.model,
        "version": said.version,
        "inferenceReady": said.inference_ready,
        "timestamp": formats.timestamp(checkpoint.created_ns),
        "status": str(checkpoint.state),
        "sizeBytes": checkpoint.size,
        "resumable": said.resumable,
        "parentId": checkpoint.parent,
        "tags": list(checkpoint.tags),
        "job": checkpoint.job,
    }


def replicated(checkpoint: Checkpoint, replica: Replica | None) -> Record:
    """A committed checkpoint's row, with how its copy in an object store is."""
    words = "local" if replica is None else replica.words
    return record(checkpoint) | {"replicated": words if checkpoint.remote is None else f"{words}, not here"}


def deleted_records(checkpoints: Iterable[Checkpoint], expiries: Mapping[str, int], now_ns: int) -> list[Record]:
    """The rows of deleted checkpoints: when each was deleted, and how long it can be restored yet."""
    return [
        record(each)
        | {
            "deletedAt": formats.timestamp(each.deleted_ns or 0),
            "expiresAt": formats.timestamp(expiries[each.id]),
            "remaining": formats.duration(expiries[each.id] - now_ns),
        }
        for each in checkpoints
    ]


def pending_record(unit: PendingUnit, job: str) -> Record:
    """The row of what is not committed yet: it has no id, and nobody has looked inside."""
    return {
        "id": None,
        "name": unit.name,
        "node": "",
        "step": None,
        "trainLoss": None,
        "evalLoss": None,
        "model": None,
        "version": None,
        "inferenceReady": False,
        "timestamp": formats.timestamp(unit.since_ns),
        "status": "pending",
        "sizeBytes": unit.size,
        "resumable": False,
        "parentId": None,
        "tags": [],
        "job": job,
    }


def show(
    title: str,
    columns: Mapping[str, str],
    records: Iterable[Record],
    *,
    colour: bool,
    stream: TextIO | None = None,
) -> None:
    """Print records as a table of `columns` (heading → key)."""
    rows = [[_cell(key, item[key]) for key in columns.values()] for item in records]
    render.show_table(title, list(columns), rows, colour=colour, stream=stream)


def _cell(key: str, value: object) -> str:
    written = _WRITTEN.get(key)
    return formats.cell(value if written is None or value is None else written(value))


def sorted_by(records: Sequence[Record], key: str) -> list[Record]:
    """Smallest first; those that do not say come last; equals stay in order."""
    said = [item for item in records if item[key] is not None]
    silent = [item for item in records if item[key] is None]
    return sorted(said, key=lambda item: item[key]) + silent  # type: ignore[arg-type,return-value]
