"""Are JSON documents and safetensors headers whole? Memory is bounded whatever they hold: nothing is built but what is
asked for."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Iterator

import msgspec
from msgspec import Struct

from fuse_ckpt.staging.reading import read_at

DOCUMENT_MAX = 64 << 20  # bytes; a longer one is taken as whole
BUILT_MAX = 2 << 20  # bytes that are parsed into values where no other way is left: some 25 times that of memory
INDEX_MAX = 16 << 20  # bytes; an index of a hundred thousand tensors
HEADER_MAX = 16 << 20  # bytes of a safetensors header that is read; a hundred thousand tensors
HEADER_LIMIT = 100_000_000  # the format's own

# What Python writes into JSON, and JSON does not know: losses that went wrong.
_NO_NUMBER = re.compile(rb"(?<=[\[,:\s])-?(?:NaN|Infinity)(?=\s*[\],}])|\A\s*-?(?:NaN|Infinity)\s*\Z")
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class _Index(Struct):
    """What is asked of *.index.json: the shards that it names."""

    weight_map: dict[str, str | list[str] | int | float | None] | None = None


class _Tensor(Struct):
    """One entry of a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def fault_of_json(fd: int, size: int, path: str, present: Collection[str] | None) -> str | None:
    """What a JSON file at `path` lacks; of an index, the shards that are not `present` beside it. None: they may be
    anywhere."""
    if size > DOCUMENT_MAX:
        return None
    if posixpath.basename(path) == "config.json":  # foreign ones are many; it costs MODEL and VERSION, with a note
        return None
    data = read_at(fd, size, 0)
    if not _is_json(data):
        return "is not JSON, or is cut off"
    if present is None or not is_index(path) or size > INDEX_MAX:
        return None
    missing = next((name for name in _named(data) if beside(path, name) not in present), None)
    return (
        None if missing is None else f"names {missing if missing.isprintable() else ascii(missing)}, which is missing"
    )


def is_index(path: str) -> bool:
    """Whether it is called as one that names the shards beside it."""
    return path.endswith((".index.json", ".weights.json"))


def shards_of(fd: int, size: int, path: str) -> Iterator[str]:
    """The paths of the shards that an index at `path` names."""
    if size <= INDEX_MAX:
        yield from (beside(path, name) for name in _named(read_at(fd, size, 0)))


def _is_json(data: bytes) -> bool:
    """Whether it is one document, or several after another (a log of metrics, a line each)."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
        return True
    except RecursionError:
        return True
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _is_pythons_json(data)


def _is_pythons_json(data: bytes) -> bool:
    """As above, by the standard library's rules, which are wider; of a long one only whether it is so without NaN."""
    if len(data) > BUILT_MAX:
        try:
            msgspec.json.decode(_NO_NUMBER.sub(b"0", data), type=msgspec.Raw)
        except msgspec.DecodeError as error:
            return "trailing characters" in str(error)
        return True
    try:
        json.loads(data, parse_int=_small_int)
    except json.JSONDecodeError as error:
        return error.msg == "Extra data"
    except ValueError:
        return False
    except RecursionError:
        return True
    return True


def _small_int(digits: str) -> int:
    # int() refuses more than 4300 digits, and takes long over fewer; no size or offset has more than 20.
    return int(digits) if len(digits) <= 20 else 0


def _named(data: bytes) -> Iterator[str]:
    try:
        index = msgspec.json.decode(data, type=_Index)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return  # an index of something else
    for shards in (index.weight_map or {}).values():
        yield from (one for one in (shards if isinstance(shards, list) else [shards]) if isinstance(one, str))


def beside(path: str, name: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), name))


def fault_of_safetensors(fd: int, size: int) -> str | None:
    """What a safetensors file lacks: its header, a tensor's place, or bytes at its end."""
    prefix = read_at(fd, 8, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        return "is cut off in its header"
    if length > HEADER_LIMIT:
        return "has a header longer than the format allows"
    if length > HEADER_MAX:
        return None
    try:
        header = msgspec.json.decode(read_at(fd, length, 8), type=dict[str, msgspec.Raw])
        tensors = [
            msgspec.json.decode(raw, type=_Tensor, strict=True)
            for name, raw in header.items()
            if name != "__metadata__"
        ]
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError, UnicodeDecodeError):
        return "has a header that cannot be read"
    return _fault_of_tensors(tensors, size - 8 - length)


def _fault_of_tensors(tensors: list[_Tensor], size: int) -> str | None:
    """Whether the tensors lie one after another and fill the `size` bytes behind the header."""
    end = 0
    for tensor in sorted(tensors, key=lambda one: one.data_offsets):
        first, last = tensor.data_offsets
        if first != end or last < first:
            return "has tensors that overlap or leave gaps"
        bits = _ITEM_BITS.get(tensor.dtype)
        if bits is not None and _count(tensor.shape) * bits != (last - first) * 8:
            return "has a tensor whose shape does not fit its bytes"
        end = last
    return None if end == size else f"has {size} bytes of tensors, its header says {end}"


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape[:64]:  # no tensor has more dimensions, and huge numbers take long to multiply
        count *= size
    return count
