"""Tensors in numbers: how many, how large, how many parameters of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

from fuse_ckpt.contents.tensors import Tensor

# What training keeps beside a model: by a part of a file's path, or by what a tensor's name begins with.
_STATE = re.compile(r"opt(im.*)?|.*(optim|sched|rng|random|scaler|sampler|callback|metric).*|loops?|loss(es)?")


class Sum(Struct):
    """Some tensors together: how many, their elements, their bytes."""

    tensors: int = 0
    elements: int = 0
    size: int = 0


class Total(Struct):
    """The tensors of a checkpoint; those that are the same bytes under two names are counted once."""

    all: Sum
    by_type: dict[str, Sum]
    parameters: int  # elements of weights and buffers, without the state of optimizers and their kin


def summed(tensors: Iterable[Tensor]) -> Total:
    """Add up tensors, the types in the order of their first one."""
    total = Total(Sum(), {}, 0)
    for tensor in distinct(tensors):
        for part in (total.all, total.by_type.setdefault(tensor.dtype, Sum())):
            part.tensors += 1
            part.elements += tensor.count
            part.size += tensor.size
        total.parameters += 0 if _is_state(tensor) else tensor.count
    return total


def distinct(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors without those that are the same bytes under another name, as tied weights are."""
    seen: set[object] = set()
    for tensor in tensors:
        key = tensor.pieces or (tensor.group, tensor.name)
        if key not in seen:
            seen.add(key)
            yield tensor


def _is_state(tensor: Tensor) -> bool:
    parts = [*tensor.group.lower().split("/"), tensor.name.lower().partition(".")[0]]
    return any(_STATE.fullmatch(part) for part in parts)
