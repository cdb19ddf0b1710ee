"""Turns values of unknown files into values that can be stored and shown; what is unusable becomes None and a note."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO

Opener = Callable[[], BinaryIO]

MIB = 1024 * 1024
JSON_MAX = 16 * MIB
TEXT_MAX = 200  # characters
STEP_END = 2**63  # what an index's integer can hold
NOTES_MAX = 20

STEP_KEYS = ("step", "global_step", "iteration", "iter", "it", "global_steps")
TRAIN_LOSS_KEYS = ("loss", "train_loss", "training_loss")
EPOCH_KEYS = ("epoch", "current_epoch")
EVAL_LOSS_KEYS = ("eval_loss", "val_loss", "valid_loss", "validation_loss")
MODEL_KEYS = ("model_name", "arch")
VERSION_KEYS = ("pytorch-lightning_version", "ds_version")

# Hidden and moving characters: controls, bidirectional marks, lone surrogates, line and paragraph separators.
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Unreadable(ValueError):
    """A file does not hold what it should; the message follows the file's name in a note."""


def cut(text: str) -> str:
    """`text` without characters that could move a terminal's cursor, at most TEXT_MAX long."""
    shown = (character for character in text[: 4 * TEXT_MAX] if unicodedata.category(character) not in _UNSHOWN)
    return "".join(shown).strip()[:TEXT_MAX]


def text_of(value: object) -> str | None:
    return (cut(value) or None) if isinstance(value, str) else None


def step_of(value: object, where: str, notes: list[str]) -> int | None:
    if value is None:
        return None
    if type(value) is int and 0 <= value < STEP_END:
        return value
    notes.append(f"{where} is not a step number")
    return None


def loss_of(value: object, where: str, notes: list[str]) -> float | None:
    if value is None:
        return None
    if type(value) is int and abs(value) < STEP_END:
        return float(value)
    if type(value) is float and math.isfinite(value):
        return value
    notes.append(f"{where} is not a finite number")
    return None


def epoch_of(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < STEP_END else None  # type: ignore[operator,arg-type]


def first_number(values: Mapping[str, object], keys: Iterable[str]) -> tuple[str, object]:
    """The first of `keys` that has a number, and the number; ("", None) where none has."""
    return next(((key, values[key]) for key in keys if type(values.get(key)) in (int, float)), ("", None))


def parse_json(data: bytes) -> object:
    """The value of a JSON text, NaN and Infinity allowed. Raises Unreadable."""
    try:
        value: object = json.loads(data, parse_int=_bounded_int)
    except ValueError as error:
        raise Unreadable("is cut off, or is not JSON") from error
    except RecursionError as error:
        raise Unreadable("is nested too deeply to be read") from error
    return value


def read_json_object(opener: Opener) -> dict[str, object]:
    """The JSON object that a file holds. Raises Unreadable, or OSError."""
    with opener() as file:
        data = file.read(JSON_MAX + 1)
    if len(data) > JSON_MAX:
        raise Unreadable("is longer than 16 MiB and was not read")
    value = parse_json(data)
    if not isinstance(value, dict):
        raise Unreadable("is not a JSON object")
    return value


def _bounded_int(digits: str) -> int | float:
    # int() takes quadratic time, and refuses more than 4300 digits; no number that is meant has more than 20.
    return int(digits) if len(digits) <= 20 else math.inf
