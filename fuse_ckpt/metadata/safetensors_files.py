"""A safetensors file's header: how many tensors, and its free text."""

from __future__ import annotations

import math

from fuse_ckpt.metadata.values import (
    EVAL_LOSS_KEYS,
    JSON_MAX,
    STEP_KEYS,
    TRAIN_LOSS_KEYS,
    Opener,
    Unreadable,
    parse_json,
)
from fuse_ckpt.model import Metadata

FORMAT = "safetensors"


def safetensors_file(opener: Opener) -> Metadata:
    """Step and losses from `__metadata__`, whose values are strings. Raises Unreadable, or OSError."""
    with opener() as file:
        length = int.from_bytes(file.read(8), "little")
        if length > JSON_MAX:
            raise Unreadable("has a header longer than 16 MiB, which was not read")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        return Metadata()
    said = header.get("__metadata__")
    tensors = len(header) - ("__metadata__" in header)
    if not isinstance(said, dict):
        return Metadata(format=FORMAT, tensors=tensors)
    return Metadata(
        step=next((step for key in STEP_KEYS if (step := _step(said.get(key))) is not None), None),
        train_loss=next((loss for key in TRAIN_LOSS_KEYS if (loss := _loss(said.get(key))) is not None), None),
        eval_loss=next((loss for key in EVAL_LOSS_KEYS if (loss := _loss(said.get(key))) is not None), None),
        format=FORMAT,
        tensors=tensors,
    )


def _step(text: object) -> int | None:
    if not isinstance(text, str) or not (text.isascii() and text.isdecimal() and len(text) <= 18):
        return None
    return int(text)


def _loss(text: object) -> float | None:
    if not isinstance(text, str) or len(text) > 40:
        return None
    try:
        loss = float(text)
    except ValueError:
        return None
    return loss if math.isfinite(loss) else None
