"""Asks each file of a checkpoint what it says, and takes the first answer to each question."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce

from msgspec.structs import replace

from fuse_ckpt.metadata import diffusers, huggingface, names
from fuse_ckpt.metadata.distributed import METADATA_FILE, distributed
from fuse_ckpt.metadata.safetensors_files import safetensors_file
from fuse_ckpt.metadata.torch_files import torch_file
from fuse_ckpt.metadata.values import NOTES_MAX, Opener, Unreadable, cut
from fuse_ckpt.model import Metadata

Reader = Callable[[Opener], Metadata | None]

FILES_MAX = 64  # pickles that are walked; ranks' files repeat each other
HEADERS_MAX = 1024  # of safetensors files; the largest public models have some 200 shards

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

_TORCH = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_NO_STATE = re.compile(r"training_args\.bin|rng_state.*\.pth|random_states.*\.pkl")
_MODEL_FILE = re.compile(r"(pytorch_model|model|adapter_model).*\.(pt|pth|bin|ckpt)")


def extract(unit_name: str, members: Mapping[str, Opener]) -> Metadata:
    """What the checkpoint of the unit `unit_name` says of its training; never raises for what its files hold.

    `members` maps each file's path, relative to the checkpoint's root, to an opener of a seekable binary file.
    """
    sharded = _distributed_files(members)
    holders = [*sharded, *_torch_files(members), *_safetensors_files(members)]
    merged = reduce(_merge, [*_documents(members), *holders], Metadata())
    is_read = any(one.format for one in sharded)  # then what the ranks' own files are called tells nothing more
    called = [_name(path) for path in sorted(members) if not (is_read and path.endswith(".distcp"))]
    return replace(
        merged,
        step=names.step_of_name(unit_name, called) if merged.step is None else merged.step,
        resumable=merged.resumable or any(map(names.is_optimizer_name, called)),
        weights=merged.weights or any(map(names.is_weights_name, called)),
        format=_format(holders) or next(map(names.format_of_name, filter(names.is_weights_name, called)), None),
        tensors=_tensors(holders, called),
        notes=merged.notes[:NOTES_MAX],
    )


def _merge(first: Metadata, then: Metadata) -> Metadata:
    return Metadata(
        step=then.step if first.step is None else first.step,
        epoch=then.epoch if first.epoch is None else first.epoch,
        train_loss=then.train_loss if first.train_loss is None else first.train_loss,
        eval_loss=then.eval_loss if first.eval_loss is None else first.eval_loss,
        model=first.model or then.model,
        version=first.version or then.version,
        inference_ready=first.inference_ready or then.inference_ready,
        resumable=first.resumable or then.resumable,
        weights=first.weights or then.weights,
        notes=(*first.notes, *then.notes),
    )


def _format(holders: Sequence[Metadata]) -> str | None:
    """The formats of the files that hold weights; where none does, of those that hold anything."""
    weights = [one.format for one in holders if one.format and one.weights]
    return ", ".join(dict.fromkeys(weights or [one.format for one in holders if one.format and one.tensors])) or None


def _tensors(holders: Sequence[Metadata], called: Sequence[str]) -> int | None:
    """How many tensors there are in all; None where some file's were not counted."""
    counted = {".safetensors", ".pkl"}
    if any(names.format_of_name(name) and not name.endswith(tuple(counted)) for name in called):
        return None
    if any(one.tensors is None and (one.weights or one.notes) for one in holders):
        return None
    counts = [one.tensors for one in holders if one.tensors is not None]
    return sum(counts) if counts else None


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


def _documents(members: Mapping[str, Opener]) -> list[Metadata]:
    """What the JSON files at the checkpoint's root say."""
    readers: dict[str, Reader] = {
        "trainer_state.json": huggingface.trainer_state,
        "all_results.json": huggingface.all_results,
        "model_index.json": diffusers.model_index,
        "config.json": huggingface.model_config,
    }
    if "config.json" not in members:
        readers["adapter_config.json"] = huggingface.adapter_config
        readers["config_sentence_transformers.json"] = diffusers.sentence_transformers_config
    return [_ask(path, members[path], reader) for path, reader in readers.items() if path in members]


def _distributed_files(members: Mapping[str, Opener]) -> list[Metadata]:
    asked = [path for path in sorted(members) if METADATA_FILE.fullmatch(_name(path))]
    by_name = Metadata(resumable=True)
    return [
        _named(path, _ask(path, members[path], partial(distributed, path, members), by_name))
        if count < FILES_MAX
        else by_name
        for count, path in enumerate(asked)
    ]


def _torch_files(members: Mapping[str, Opener]) -> list[Metadata]:
    asked = [path for path in sorted(members) if path.endswith(_TORCH) and not _NO_STATE.fullmatch(_name(path))]
    return [_torch_answer(path, members[path], opened=count < FILES_MAX) for count, path in enumerate(asked)]


def _torch_answer(path: str, opener: Opener, *, opened: bool) -> Metadata:
    name = _name(path)
    by_name = Metadata(weights=_MODEL_FILE.fullmatch(name) is not None)
    answer = _named(path, _ask(path, opener, torch_file, by_name)) if opened else by_name
    return replace(answer, weights=answer.weights and not names.never_holds_weights(name))


def _safetensors_files(members: Mapping[str, Opener]) -> list[Metadata]:
    asked = [path for path in sorted(members) if path.endswith(".safetensors")]
    by_name = Metadata(weights=True)
    return [
        replace(_ask(path, members[path], safetensors_file, by_name), weights=True) if count < HEADERS_MAX else by_name
        for count, path in enumerate(asked)
    ]


def _named(path: str, answer: Metadata) -> Metadata:
    notes = tuple(f"{cut(path)}: {note}" if note.startswith(("its ", "the score")) else note for note in answer.notes)
    return replace(answer, notes=notes)


def _name(path: str) -> str:
    return path.rpartition("/")[2]
