"""Files made by hand for the tests: checkpoints in memory, and pickles put together opcode by opcode. No code in them
ever runs."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import torch
from blake3 import blake3

from fuse_ckpt.contents.reading import Window
from fuse_ckpt.model import Entry, Kind


class Checkpoint:
    """Files in memory, as the rooms above give them to `contents`: entries, and a way to the bytes of a digest."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        digests = {path: blake3(data).hexdigest() for path, data in files.items()}
        self.data = {digests[path]: data for path, data in files.items()}
        self.read: list[str] = []  # digests, each time that one is opened
        self.entries = [
            Entry(path, Kind.FILE, 0o644, 1, size=len(data), digest=digests[path]) for path, data in files.items()
        ]

    def blobs(self, digest: str) -> BinaryIO:
        self.read.append(digest)
        return io.BytesIO(self.data[digest])


def window(data: bytes) -> Window:
    return Window.whole(io.BytesIO(data))


def saved(value: object, **options: bool) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, **options)
    return made.getvalue()


def legacy(value: object) -> bytes:
    return saved(value, _use_new_zipfile_serialization=False)


# -- pickles by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: str) -> bytes:
    """Opcodes that call a function with strings, and leave what it returns."""
    return name(module, attribute) + b"(" + b"".join(map(text, arguments)) + b"tR"


def pickled(opcodes: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + opcodes + b"."


EVIL = pickled(call("os", "system", "true"))


def torch_zip(
    data_pkl: bytes, extra: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A file of torch.save's form around a pickle of any kind."""
    files = {"archive/data.pkl": data_pkl, "archive/version": b"3\n", **(extra or {})}
    return zipped(list(files.items()), compression)


def zipped(files: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for path, data in files:
            archive.writestr(path, data)
    return made.getvalue()


def torch_legacy(data_pkl: bytes) -> bytes:
    """A file of torch.save's old form around a pickle of any kind, without tensors."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    preamble = [0x1950A86A20F9469CFC6C, 1001, machine]
    return b"".join(pickle.dumps(one, 2) for one in preamble) + data_pkl + pickle.dumps([], 2)


def tensor(shape: Sequence[int], strides: Sequence[int], count: int) -> bytes:
    """Opcodes of a tensor of 32-bit floats that is a view of the storage "0", which has `count` of them."""
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + number(count) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, lengths)) + b"t" for lengths in (shape, strides))
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + number(0) + sizes + b"\x89}tR"


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)
