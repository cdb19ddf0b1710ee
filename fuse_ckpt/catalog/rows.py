"""From a decision to a row. Pure."""

from __future__ import annotations

from msgspec import Struct

from fuse_ckpt.sharing import Decision
from fuse_ckpt.wording import visible

_INT64 = range(-(2**63), 2**63)


class Row(Struct, frozen=True, array_like=True):
    """One committed checkpoint. Times: microseconds since the epoch, UTC. None: it does not say.

    `version`: of the library that wrote it; `format`: how its weights are stored; `created`: the last close of a
    member; `committed`: the last seal of a part; `generation`: the n-th of its attempt under this name;
    `decision`: the key of the decision, below the root of the shared store.
    """

    id: str
    job: str
    name: str
    step: int | None
    epoch: float | None
    train_loss: float | None
    eval_loss: float | None
    model: str | None
    version: str | None
    format: str | None
    tensors: int | None
    inference_ready: bool
    resumable: bool
    created: int
    committed: int
    size_bytes: int
    files: int
    nodes: int
    node_names: tuple[str, ...]
    attempt: str
    generation: int
    parent: str | None
    run: str | None
    decision: str


def row_of(decision: Decision, key: str) -> Row:
    """The row of a committed checkpoint, whose decision is at `key`."""
    said = decision.metadata
    return Row(
        id=decision.id, job=decision.job, name=_text(decision.name), step=_int64(said.step), epoch=said.epoch,
        train_loss=said.train_loss, eval_loss=said.eval_loss, model=_maybe(said.model), version=_maybe(said.version),
        format=_maybe(said.format), tensors=_int64(said.tensors), inference_ready=said.inference_ready,
        resumable=said.resumable, created=decision.created_ns // 1000, committed=decision.sealed_ns // 1000,
        size_bytes=decision.size, files=decision.files, nodes=decision.nodes,
        node_names=tuple(dict.fromkeys(_text(part.node) for part in decision.parts)),
        attempt=_text(decision.attempt), generation=decision.generation, parent=decision.parent, run=decision.run,
        decision=key,
    )  # fmt: skip


def _int64(number: int | None) -> int | None:
    return number if number is not None and number in _INT64 else None


def _maybe(text: str | None) -> str | None:
    return None if text is None else _text(text)


def _text(text: str) -> str:
    """Bytes that are no UTF-8 as escapes: a column of text cannot carry them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return visible(text)
    return text
