"""The losses of a whole training, as a Trainer's trainer_state.json keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from msgspec import Struct

from fuse_ckpt.metadata.values import STEP_END, Opener, read_json_object

Points = tuple[tuple[int, float], ...]  # (step, loss), in the order of the steps


class History(Struct, frozen=True):
    """Train and evaluation loss by step."""

    train: Points = ()
    eval: Points = ()


def loss_history(opener: Opener) -> History:
    """The losses in a trainer_state.json; entries that are not what they should be are left out.

    Raises Unreadable, a ValueError, where it is no JSON object or longer than 16 MiB; OSError.
    """
    entries = read_json_object(opener).get("log_history")
    known = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return History(train=_points(known, "loss"), eval=_points(known, "eval_loss"))


def _points(entries: Iterable[dict[str, object]], key: str) -> Points:
    # By step: a Trainer that was resumed logs some steps again.
    return tuple(sorted(dict(_numbers(entries, key)).items()))


def _numbers(entries: Iterable[dict[str, object]], key: str) -> Iterator[tuple[int, float]]:
    for entry in entries:
        step, loss = entry.get("step"), entry.get(key)
        if type(step) is not int or not 0 <= step < STEP_END:
            continue
        if isinstance(loss, int | float) and math.isfinite(loss):
            yield step, float(loss)
