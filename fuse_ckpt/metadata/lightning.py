"""What the callbacks in a Lightning checkpoint say of the loss that they watch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from fuse_ckpt.metadata.symbols import Outline
from fuse_ckpt.metadata.values import cut, loss_of
from fuse_ckpt.model import Metadata

_LOSS = re.compile(r"(?<![a-z])loss(?![a-z])", re.IGNORECASE)
_VALIDATION = re.compile(r"(?<![a-z])(val|valid|validation|eval|dev|test)(?![a-z])", re.IGNORECASE)
_TRAINING = re.compile(r"(?<![a-z])(train|training)(?![a-z])", re.IGNORECASE)


def monitored(items: Mapping[str, object], number: Callable[[object], object], notes: list[str]) -> Metadata:
    """The losses that a ModelCheckpoint watched, if its metric's name says which loss it is.

    `items`: the checkpoint's top level; `number` turns a symbol into the number that it stands for.
    """
    train_loss = eval_loss = None
    for name, score in _scores(items.get("callbacks")):
        if not _LOSS.search(name):
            continue
        loss = loss_of(number(score), f"the score of {cut(name)}", notes)
        if _VALIDATION.search(name):
            eval_loss = loss if eval_loss is None else eval_loss
        elif _TRAINING.search(name) or name == "loss":
            train_loss = loss if train_loss is None else train_loss
    return Metadata(train_loss=train_loss, eval_loss=eval_loss)


def _scores(callbacks: object) -> Iterator[tuple[str, object]]:
    """Each watched metric's name, and its value when this was saved; the best so far where that is not told."""
    for state in callbacks.items.values() if isinstance(callbacks, Outline) else ():
        if not isinstance(state, Outline):
            continue
        name = state.items.get("monitor")
        if isinstance(name, str):
            yield name, state.items.get("current_score", state.items.get("best_model_score"))
