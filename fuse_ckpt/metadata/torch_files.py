"""What a file of torch.save, or any other pickle, says at the top level of its dictionary; whole modules too."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import BinaryIO

from msgspec.structs import replace

from fuse_ckpt.metadata.lightning import monitored
from fuse_ckpt.metadata.pickles import counted_outline, outline
from fuse_ckpt.metadata.symbols import Instance, Outline, Scalar, holds_tensors
from fuse_ckpt.metadata.torch_zip import PICKLE_MAX, START, TorchZip
from fuse_ckpt.metadata.values import (
    EPOCH_KEYS,
    EVAL_LOSS_KEYS,
    MODEL_KEYS,
    STEP_KEYS,
    TRAIN_LOSS_KEYS,
    VERSION_KEYS,
    Opener,
    cut,
    epoch_of,
    first_number,
    loss_of,
    step_of,
    text_of,
)
from fuse_ckpt.model import Metadata

_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that opens torch's format before zip
_PICKLE_START = b"\x80"
_LEGACY_PREAMBLE = 3  # pickles before the value: that number, the protocol, the machine's sizes
_NOT_WEIGHTS = ("optim", "sched", "rng", "random", "scaler", "loss", "metric", "callbacks", "loops")
_NUMBER_KEYS = (*STEP_KEYS, *EPOCH_KEYS, *TRAIN_LOSS_KEYS, *EVAL_LOSS_KEYS)

Number = Callable[[object], object]  # a symbol's own value, a tensor's of one number read from the file


def torch_file(opener: Opener) -> Metadata | None:
    """What the file says; None: it is no pickle of any form. Raises an ordinary error where it is broken."""
    with opener() as file:
        return torch_stream(file)


def torch_stream(file: BinaryIO) -> Metadata | None:
    """The same of a file that is open, and stays so."""
    start = file.read(len(_LEGACY_START))
    if start.startswith(START):
        return _zipped(file)
    if not start.startswith(_PICKLE_START):
        return None
    file.seek(0)
    pickle = io.BytesIO(file.read(PICKLE_MAX))  # in torch's old format the tensors' bytes follow the value's pickle
    legacy = start == _LEGACY_START
    for _ in range(_LEGACY_PREAMBLE if legacy else 0):
        outline(pickle)
    top, tensors = counted_outline(pickle)
    said = _read(top, lambda value: value)
    return replace(said, format="torch legacy" if legacy else "pickle", tensors=tensors)


def _zipped(file: BinaryIO) -> Metadata | None:
    archive = TorchZip(file)
    pickle = archive.pickle()
    if pickle is None:
        return None
    top, tensors = counted_outline(pickle)
    said = _read(top, lambda value: archive.number(value) if isinstance(value, Scalar) else value)
    return replace(said, format="torch zip", tensors=tensors)


def _read(top: object, number: Number) -> Metadata:
    if not isinstance(top, Outline):
        model = cut(top.function.name) if isinstance(top, Instance) and top.tensors else ""
        return Metadata(model=model or None, weights=holds_tensors(top))
    notes: list[str] = []
    items = top.items
    numbers = {key: number(items[key]) for key in _NUMBER_KEYS if key in items}
    watched = monitored(items, number, notes)
    train_loss = loss_of(first_number(numbers, TRAIN_LOSS_KEYS)[1], "its training loss", notes)
    eval_loss = loss_of(first_number(numbers, EVAL_LOSS_KEYS)[1], "its evaluation loss", notes)
    return Metadata(
        step=step_of(first_number(numbers, STEP_KEYS)[1], "its step", notes),
        epoch=epoch_of(first_number(numbers, EPOCH_KEYS)[1]),
        train_loss=watched.train_loss if train_loss is None else train_loss,
        eval_loss=watched.eval_loss if eval_loss is None else eval_loss,
        model=_first_text(items, MODEL_KEYS),
        version=_first_text(items, VERSION_KEYS),
        resumable=_is_optimizer(top) or any(map(_is_optimizer_item, items.items())),
        weights=not _is_optimizer(top) and (top.unnamed_tensors or _has_weights(items)),
        notes=tuple(notes),
    )


def _first_text(items: Mapping[str, object], keys: tuple[str, ...]) -> str | None:
    return next((text for key in keys if (text := text_of(items.get(key)))), None)


def _is_optimizer(value: object) -> bool:
    return isinstance(value, Outline) and "state" in value.items and "param_groups" in value.items


def _is_optimizer_item(item: tuple[str, object]) -> bool:
    key, value = item
    return _is_optimizer(value) or ("optim" in key.lower() and value is not None)


def _has_weights(items: Mapping[str, object]) -> bool:
    return any(is_weights_key(key) for key, value in items.items() if holds_tensors(value) and not _is_optimizer(value))


def is_weights_key(key: str) -> bool:
    """Whether tensors under that key are a model's."""
    return not any(word in key.lower() for word in _NOT_WEIGHTS)
