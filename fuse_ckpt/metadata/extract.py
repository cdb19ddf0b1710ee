"""Asks each file of a checkpoint what it says, and takes the first answer to each question."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from functools import reduce

from msgspec.structs import replace

from fuse_ckpt.metadata import huggingface
from fuse_ckpt.metadata.safetensors_files import safetensors_file
from fuse_ckpt.metadata.torch_files import torch_file
from fuse_ckpt.metadata.values import NOTES_MAX, STEP_END, Opener, Unreadable, cut
from fuse_ckpt.model import Metadata

Reader = Callable[[Opener], Metadata | None]

FILES_MAX = 64  # that are opened of one kind; ranks' files repeat each other

# What the bytes of a foreign or broken file can raise on the way through zipfile, pickletools and json.
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

_TORCH = (".pt", ".pth", ".ckpt", ".bin")
_WEIGHTS = (".safetensors", ".distcp", ".keras", ".h5", ".gguf", ".onnx", ".npz", ".pkl")
_NO_STATE = re.compile(r"training_args\.bin|rng_state.*\.pth")
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|sampler|scaler|rng_state|random_states|training_args|distrib_optim).*|.*optim_states\.pt"
)
_OPTIMIZER = re.compile(r"optimizer(_\d+)?\.(pt|bin)|(__\d+)?\.metadata|.*optim_states\.pt|distrib_optim\.pt")
_MODEL_FILE = re.compile(r"(pytorch_model|model|adapter_model).*\.(pt|pth|bin|ckpt)")

_STEP_NAME = re.compile(
    r"(?:^|[-_.=])(?P<word>global_?step|step|iteration|iter|ba|checkpoint|ckpt)[-_=.]?(?P<number>\d+)"
    r"(?![0-9a-z]|-\d\d-\d\d)",  # checkpoint_2025-06-05 is a day
    re.ASCII | re.IGNORECASE,
)


def extract(unit_name: str, members: Mapping[str, Opener]) -> Metadata:
    """What the checkpoint of the unit `unit_name` says of its training; never raises for what its files hold.

    `members` maps each file's path, relative to the checkpoint's root, to an opener of a seekable binary file.
    """
    answers = [*_hugging_face(members), *_torch_files(members), *_safetensors_files(members)]
    merged = reduce(_merge, answers, Metadata())
    names = [path.rpartition("/")[2] for path in members]
    return replace(
        merged,
        step=_step_of_name(unit_name) if merged.step is None else merged.step,
        resumable=merged.resumable or any(map(_OPTIMIZER.fullmatch, names)),
        weights=merged.weights or any(map(_is_weights_name, names)),
        notes=merged.notes[:NOTES_MAX],
    )


def _merge(first: Metadata, then: Metadata) -> Metadata:
    return Metadata(
        step=then.step if first.step is None else first.step,
        train_loss=then.train_loss if first.train_loss is None else first.train_loss,
        eval_loss=then.eval_loss if first.eval_loss is None else first.eval_loss,
        model=first.model or then.model,
        version=first.version or then.version,
        inference_ready=first.inference_ready or then.inference_ready,
        resumable=first.resumable or then.resumable,
        weights=first.weights or then.weights,
        notes=(*first.notes, *then.notes),
    )


def _ask(path: str, opener: Opener, reader: Reader, otherwise: Metadata = Metadata()) -> Metadata:  # noqa: B008
    """What `reader` makes of the file; `otherwise`, and a note, where it cannot be read."""
    try:
        return reader(opener) or otherwise
    except Unreadable as error:
        note = f"{cut(path)} {error}"
    except OSError as error:
        note = f"{cut(path)} could not be read: {error.strerror or 'the disk refuses'}"
    except MemoryError:
        note = f"{cut(path)} is too large to be read here"
    except _BROKEN:
        note = f"{cut(path)} is cut off or broken"
    return replace(otherwise, notes=(note,))


def _hugging_face(members: Mapping[str, Opener]) -> list[Metadata]:
    readers: dict[str, Reader] = {
        "trainer_state.json": huggingface.trainer_state,
        "config.json": huggingface.model_config,
    }
    if "config.json" not in members:
        readers["adapter_config.json"] = huggingface.adapter_config
    return [_ask(path, members[path], reader) for path, reader in readers.items() if path in members]


def _torch_files(members: Mapping[str, Opener]) -> list[Metadata]:
    asked = [path for path in sorted(members) if path.endswith(_TORCH) and not _fits(_NO_STATE, path)]
    return [_torch_answer(path, members[path], opened=count < FILES_MAX) for count, path in enumerate(asked)]


def _torch_answer(path: str, opener: Opener, *, opened: bool) -> Metadata:
    by_name = Metadata(weights=_fits(_MODEL_FILE, path))
    answer = _ask(path, opener, torch_file, otherwise=by_name) if opened else by_name
    notes = tuple(f"{cut(path)}: {note}" if note.startswith("its ") else note for note in answer.notes)
    return replace(answer, weights=answer.weights and not _fits(_NO_WEIGHTS, path), notes=notes)


def _safetensors_files(members: Mapping[str, Opener]) -> list[Metadata]:
    asked = [path for path in sorted(members) if path.endswith(".safetensors")][:FILES_MAX]
    return [_ask(path, members[path], safetensors_file) for path in asked]


def _fits(pattern: re.Pattern[str], path: str) -> bool:
    return pattern.fullmatch(path.rpartition("/")[2]) is not None


def _is_weights_name(name: str) -> bool:
    return name.endswith(_WEIGHTS) and _NO_WEIGHTS.fullmatch(name) is None


def _step_of_name(unit_name: str) -> int | None:
    """The number that a step-like name carries; an epoch's is none."""
    name = unit_name.rpartition("/")[2]
    if name.isdecimal() and name.isascii():
        return _bounded(name)
    found = {match["word"].lower(): match["number"] for match in _STEP_NAME.finditer(name)}
    for word in ("global_step", "globalstep", "step", "iteration", "iter", "ba", "checkpoint", "ckpt"):
        if word in found:
            return _bounded(found[word])
    return None


def _bounded(digits: str) -> int | None:
    step = int(digits) if len(digits) <= 20 else STEP_END
    return step if step < STEP_END else None
