"""torch.distributed.checkpoint: what its `.metadata` names, and the numbers that it says lie in a rank's `.distcp`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from fuse_ckpt.metadata.pickles import outline
from fuse_ckpt.metadata.symbols import Global, Instance, Outline
from fuse_ckpt.metadata.torch_files import is_weights_key
from fuse_ckpt.metadata.torch_zip import PICKLE_MAX, TorchZip
from fuse_ckpt.metadata.values import (
    EPOCH_KEYS,
    EVAL_LOSS_KEYS,
    MIB,
    STEP_KEYS,
    TRAIN_LOSS_KEYS,
    Opener,
    Unreadable,
    epoch_of,
    first_number,
    loss_of,
    step_of,
)
from fuse_ckpt.model import Metadata

METADATA_FILE = re.compile(r"(__\d+)?\.metadata")
OBJECT_MAX = MIB  # bytes of a saved object that may be a number
_MODULE = "torch.distributed.checkpoint.metadata"
_NUMBER_KEYS = frozenset((*STEP_KEYS, *EPOCH_KEYS, *TRAIN_LOSS_KEYS, *EVAL_LOSS_KEYS))
_OPTIMIZER = re.compile(r"(^|[./])(optim|opt([./_]|$))", re.IGNORECASE)


def distributed(path: str, members: Mapping[str, Opener], opener: Opener) -> Metadata | None:
    """What the distributed checkpoint says whose metadata file is `path`, opened by `opener`; `members` are all files.

    None: it is another program's file. Raises Unreadable, or an ordinary error where it is broken.
    """
    top = _top(opener)
    if top is None:
        return None
    kinds = _kinds(top.attribute("state_dict_metadata"))
    tensors = [name for name, kind in kinds.items() if kind == "TensorStorageMetadata"]
    directory = path.rpartition("/")[0]
    numbers = dict(_numbers(_candidates(kinds), top.attribute("storage_data"), directory, members))
    notes: list[str] = []
    resumable = any(map(_OPTIMIZER.search, (directory, *kinds)))
    return Metadata(
        step=step_of(first_number(numbers, STEP_KEYS)[1], "its step", notes),
        epoch=epoch_of(first_number(numbers, EPOCH_KEYS)[1]),
        train_loss=loss_of(first_number(numbers, TRAIN_LOSS_KEYS)[1], "its training loss", notes),
        eval_loss=loss_of(first_number(numbers, EVAL_LOSS_KEYS)[1], "its evaluation loss", notes),
        resumable=resumable,
        weights=any(not _OPTIMIZER.search(f"{directory}/{name}") and is_weights_key(name) for name in tensors),
        format="torch distributed",
        tensors=len(tensors) if path.endswith("/.metadata") or path == ".metadata" else None,  # a rank's own: a part
        notes=tuple(notes),
    )


def _top(opener: Opener) -> Instance | None:
    with opener() as file:
        data = file.read(PICKLE_MAX + 1)
    if len(data) > PICKLE_MAX:
        raise Unreadable("is longer than 64 MiB and was not read")
    if not data.startswith(b"\x80"):
        raise Unreadable("is not a pickle, or is cut off")
    top = outline(io.BytesIO(data))
    return top if isinstance(top, Instance) and top.function == Global(_MODULE, "Metadata") else None


def _kinds(named: object) -> dict[str, str]:
    """What each name of the saved state stands for: TensorStorageMetadata, BytesStorageMetadata."""
    items = named.items if isinstance(named, Outline) else {}
    return {name: kind.function.name for name, kind in items.items() if isinstance(kind, Instance)}


def _candidates(kinds: Mapping[str, str]) -> dict[str, str]:
    """Saved objects that may be a number of use: name → key, those at the top level first."""
    objects = sorted((name for name, kind in kinds.items() if kind == "BytesStorageMetadata"), key=_depth)
    keys: dict[str, str] = {}
    for name in objects:
        key = name.rpartition(".")[2]
        if key in _NUMBER_KEYS and _depth(name) <= 1 and not _OPTIMIZER.search(name) and key not in keys.values():
            keys[name] = key
    return keys


def _depth(name: str) -> int:
    return name.count(".")


def _numbers(
    wanted: Mapping[str, str], places: object, directory: str, members: Mapping[str, Opener]
) -> Iterable[tuple[str, object]]:
    for index, place in places.keyed if wanted and isinstance(places, Outline) else ():
        name = index.attribute("fqn")
        if not isinstance(name, str) or name not in wanted or not isinstance(place, Instance):
            continue
        file, offset, length = (place.attribute(part) for part in ("relative_path", "offset", "length"))
        opener = members.get(f"{directory}/{file}" if directory else str(file))
        if opener is not None and type(offset) is int and type(length) is int and 0 < length <= OBJECT_MAX:
            yield wanted[name], _number_at(opener, offset, length)


def _number_at(opener: Opener, offset: int, length: int) -> object:
    """The symbol of an object that torch.save put there; None where that is not what lies there."""
    with opener() as file:
        file.seek(offset)
        data: BinaryIO = io.BytesIO(file.read(length))
    try:
        pickle = TorchZip(data).pickle()
    except Unreadable:
        return None
    return None if pickle is None else outline(pickle)
