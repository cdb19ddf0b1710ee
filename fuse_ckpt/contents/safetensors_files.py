"""The tensors of a safetensors file, by its header."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from fuse_ckpt.contents.dtypes import SAFETENSORS
from fuse_ckpt.contents.reading import MIB, TooMuch, Unreadable, Window
from fuse_ckpt.contents.tensors import RANK_MAX, Piece, Source, Tensor, strides_of

HEADER_MAX = 32 * MIB  # about 250,000 tensors; the format allows 100 MB


class _Said(Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def tensors_of(window: Window, source: Source) -> list[Tensor]:
    """Raises Unreadable, TooMuch."""
    length = int.from_bytes(window.read(0, 8), "little")
    if length > window.length - 8:
        raise Unreadable("is cut off in its header, or has a header of impossible length")
    if length > HEADER_MAX:
        raise TooMuch("has a header longer than 32 MiB, which was not read")
    try:
        header = msgspec.json.decode(window.read(8, length), type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        said = {name: msgspec.json.decode(raw, type=_Said) for name, raw in header.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Unreadable("has a header that cannot be read") from error
    data = window.part(8 + length, window.length - 8 - length)
    return [_tensor(name, tensor, data, source) for name, tensor in said.items()]


def _tensor(name: str, said: _Said, data: Window, source: Source) -> Tensor:
    dtype = SAFETENSORS.get(said.dtype, said.dtype)
    if len(said.shape) > RANK_MAX or not all(0 <= length < 2**63 for length in said.shape):
        raise Unreadable("has a header that cannot be read")
    tensor = Tensor(name, source.path, (source.path,), dtype, said.shape)
    first, last = said.data_offsets
    if dtype == said.dtype:
        fault = "is of a type that is not read here"
    elif not 0 <= first <= last <= data.length:
        fault = "reaches beyond its file"
    elif last - first != tensor.size:
        fault = "has another size than its shape"
    else:
        piece = Piece(source, data.start + first, said.shape, strides_of(said.shape), (0,) * len(said.shape))
        return msgspec.structs.replace(tensor, pieces=(piece,))
    return msgspec.structs.replace(tensor, fault=fault)
