"""Checkpoints as values: what is known of one, and how a notebook shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape

from fuse_ckpt import wording
from fuse_ckpt.model import Checkpoint as Record
from fuse_ckpt.model import Entry

_ROWS_MAX = 200  # that a notebook is given
_FILES_MAX = 20


@dataclass(frozen=True)
class File:
    """A file of a checkpoint. `path` is relative to the checkpoint's root, `digest` its BLAKE3-256 in hex."""

    path: str
    size: int  # bytes
    digest: str
    modified: datetime  # UTC


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it stood when it was asked for; equal to another of the same id.

    `name` is "" for the root checkpoint of a job, `job` "" for a pushed one. What it does not say is None.
    """

    id: str
    job: str = field(compare=False)
    name: str = field(compare=False)
    ordinal: int = field(compare=False)  # this is the n-th of (job, name), from 1
    status: str = field(compare=False)  # "available", "failed" or "deleted"
    created: datetime = field(compare=False)  # UTC: when its last file was closed
    size: int = field(compare=False)  # bytes
    step: int | None = field(compare=False)
    train_loss: float | None = field(compare=False)
    eval_loss: float | None = field(compare=False)
    parent: str | None = field(compare=False)  # id of the checkpoint that its run was resumed from
    tags: tuple[str, ...] = field(compare=False)
    pinned: bool = field(compare=False)
    failure: str | None = field(compare=False)  # why it is "failed"
    metadata: Mapping[str, object] = field(compare=False, repr=False)
    _read: Callable[[str], Sequence[Entry]] = field(compare=False, repr=False)

    @property
    def files(self) -> tuple[File, ...]:
        """Its files, read when they are asked for: the store must still be open. Raises UnknownCheckpoint."""
        entries = [entry for entry in self._read(self.id) if entry.digest]
        return tuple(File(entry.path, entry.size, entry.digest, _moment(entry.mtime_ns)) for entry in entries)

    def _repr_html_(self) -> str:
        told = [(key.replace("_", " "), value) for key, value in self.metadata.items() if key != "notes"]
        rows = [
            ("id", self.id),
            ("job / name", f"{self.job}{'/' if self.job else ''}{self.name}@{self.ordinal}"),
            ("status", f"{self.status}: {self.failure}" if self.failure else self.status),
            ("created", _shown_time(self.created)),
            *told,
            ("parent", self.parent),
            ("tags", ", ".join(self.tags) or None),
            ("pinned", self.pinned or None),
            ("size", wording.size(self.size)),
        ]
        body = "".join(f"<tr><th{_LEFT}>{_html(key)}</th><td{_LEFT}>{_html(v)}</td></tr>" for key, v in rows if _is(v))
        return f"<table>{body}</table>{self._files_html()}"

    def _files_html(self) -> str:
        try:
            files = self.files
        except Exception:  # a closed store, a deleted checkpoint: what is known of it is shown all the same
            return ""
        rows = [(file.path, wording.size(file.size), file.digest[:12]) for file in files[:_FILES_MAX]]
        more = f"<p>… {len(files) - _FILES_MAX} more files</p>" if len(files) > _FILES_MAX else ""
        return _table(("file", "size", "digest"), rows) + more


class Checkpoints(list[Checkpoint]):
    """A list of checkpoints that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        heads = ("id", "job", "name", "step", "train loss", "eval loss", "status", "size", "created")
        rows = [
            (
                *(one.id, one.job, f"{one.name}@{one.ordinal}", one.step),
                *(wording.loss(one.train_loss), wording.loss(one.eval_loss)),
                *(one.status, wording.size(one.size), _shown_time(one.created)),
            )
            for one in self[-_ROWS_MAX:]
        ]
        older = f"<p>… and {len(self) - _ROWS_MAX} older ones</p>" if len(self) > _ROWS_MAX else ""
        return older + _table(heads, rows)


def view(record: Record, read: Callable[[str], Sequence[Entry]]) -> Checkpoint:
    """The public form of a record; `read` gives the entries of an id."""
    said = record.metadata
    return Checkpoint(
        *(record.id, record.job, record.name, record.ordinal, str(record.state)),
        *(_moment(record.created_ns), record.size, said.step, said.train_loss, said.eval_loss),
        *(record.parent, record.tags, record.pinned, record.failure),
        metadata={
            "step": said.step,
            "train_loss": said.train_loss,
            "eval_loss": said.eval_loss,
            "model": said.model,
            "version": said.version,
            "inference_ready": said.inference_ready,
            "resumable": said.resumable,
            "weights": said.weights,
            "node": record.node,
            "notes": said.notes,
        },
        _read=read,
    )


def _moment(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // 1000 / 1_000_000, UTC)


def _shown_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


_LEFT = ' style="text-align: left"'


def _is(value: object) -> bool:
    return value is not None and value != ""


def _table(heads: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th{_LEFT}>{_html(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td{_LEFT}>{_html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html(value: object) -> str:
    """Whatever a program put into a name, it is text: no markup, no control character."""
    return "" if value is None else escape(wording.visible(str(value)))
