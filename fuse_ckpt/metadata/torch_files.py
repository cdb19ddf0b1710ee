"""What a file of torch.save says at the top level of its dictionary, whole modules apart."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

from fuse_ckpt.metadata.pickles import Outline, holds_tensors, outline
from fuse_ckpt.metadata.values import (
    EVAL_LOSS_KEYS,
    MIB,
    MODEL_KEYS,
    STEP_KEYS,
    TRAIN_LOSS_KEYS,
    Opener,
    Unreadable,
    first_number,
    loss_of,
    step_of,
    text_of,
)
from fuse_ckpt.model import Metadata

PICKLE_MAX = 64 * MIB
_ZIP_START = b"PK\x03\x04"
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that opens torch's format before zip
_PICKLE_START = b"\x80"
_LEGACY_PREAMBLE = 3  # pickles before the value: that number, the protocol, the machine's sizes
_NAME_LENGTHS_AT = 26  # in the header before a zip member's data
_LOCAL_HEADER = 30
_NOT_WEIGHTS = ("optim", "sched", "rng", "random", "scaler", "loss", "metric", "callbacks", "loops")


def torch_file(opener: Opener) -> Metadata | None:
    """What the file says; None: it is no pickle of any form. Raises an ordinary error where it is broken."""
    with opener() as file:
        pickle = _pickle_of(file)
    return None if pickle is None else _read(outline(pickle))


def _pickle_of(file: BinaryIO) -> BinaryIO | None:
    """A stream that stands at the pickle of the saved value."""
    start = file.read(len(_LEGACY_START))
    if start.startswith(_ZIP_START):
        return _zipped_pickle(file)
    if not start.startswith(_PICKLE_START):
        return None
    file.seek(0)
    pickle = io.BytesIO(file.read(PICKLE_MAX))  # in torch's old format the tensors' bytes follow the value's pickle
    for _ in range(_LEGACY_PREAMBLE if start == _LEGACY_START else 0):
        outline(pickle)
    return pickle


def _zipped_pickle(file: BinaryIO) -> BinaryIO | None:
    try:
        members = zipfile.ZipFile(_Frugal(file)).infolist()
    except zipfile.BadZipFile as error:
        raise Unreadable("is a zip file that is cut off or broken") from error
    member = next((member for member in members if member.filename.endswith("/data.pkl")), None)
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        return None
    if member.file_size > PICKLE_MAX:
        raise Unreadable("has a pickle longer than 64 MiB, which was not read")
    # Not by ZipFile.open: it checks the CRC, which torch can be told to leave out.
    file.seek(member.header_offset + _NAME_LENGTHS_AT)
    name_length, extra_length = struct.unpack("<2H", file.read(4))
    file.seek(member.header_offset + _LOCAL_HEADER + name_length + extra_length)
    return io.BytesIO(file.read(member.file_size))


class _Frugal(io.RawIOBase):
    """A file that refuses to be read in one piece: a zip's directory may claim any length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size if 0 <= size <= PICKLE_MAX else PICKLE_MAX + 1)
        if len(data) > PICKLE_MAX:
            raise Unreadable("has a zip directory longer than 64 MiB, which was not read")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _read(top: object) -> Metadata:
    if not isinstance(top, Outline):
        return Metadata(weights=holds_tensors(top))
    notes: list[str] = []
    items = top.items
    return Metadata(
        step=step_of(first_number(items, STEP_KEYS)[1], "its step", notes),
        train_loss=loss_of(first_number(items, TRAIN_LOSS_KEYS)[1], "its training loss", notes),
        eval_loss=loss_of(first_number(items, EVAL_LOSS_KEYS)[1], "its evaluation loss", notes),
        model=next((text for key in MODEL_KEYS if (text := text_of(items.get(key)))), None),
        resumable=_is_optimizer(top) or any(map(_is_optimizer_item, items.items())),
        weights=not _is_optimizer(top) and (top.unnamed_tensors or _has_weights(items)),
        notes=tuple(notes),
    )


def _is_optimizer(value: object) -> bool:
    return isinstance(value, Outline) and "state" in value.items and "param_groups" in value.items


def _is_optimizer_item(item: tuple[str, object]) -> bool:
    key, value = item
    return _is_optimizer(value) or ("optim" in key.lower() and value is not None)


def _has_weights(items: Mapping[str, object]) -> bool:
    named = (key.lower() for key, value in items.items() if holds_tensors(value) and not _is_optimizer(value))
    return any(not any(word in key for word in _NOT_WEIGHTS) for key in named)
