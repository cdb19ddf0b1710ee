"""The tensors of files that torch.save wrote, in its two formats."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

from fuse_ckpt.contents.archives import STORED, Archive, Member
from fuse_ckpt.contents.collecting import tensors_in
from fuse_ckpt.contents.dtypes import BITS, size_of
from fuse_ckpt.contents.machine import run
from fuse_ckpt.contents.opcodes import Budget
from fuse_ckpt.contents.reading import MIB, Unreadable, Window
from fuse_ckpt.contents.report import Report
from fuse_ckpt.contents.symbols import Dict, SavedTensor
from fuse_ckpt.contents.tensors import Piece, Source, Tensor, extent

PICKLE_MAX = 64 * MIB  # of a data.pkl that is compressed; others are never in memory as a whole
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that opens torch's format before zip
LEGACY_PREAMBLE = 3  # pickles before the value: that number, the protocol, the machine's sizes

_Place = tuple[int, int, str]  # where a storage lies: byte, bytes, the compressed part of the zip file that it is in
_Find = Callable[[str], _Place | None]


def is_torch(archive: Archive) -> bool:
    return archive.find(f"{archive.top}data.pkl") is not None


def is_script(archive: Archive) -> bool:
    """Whether the archive holds TorchScript: code that runs when it is loaded."""
    return any(member.name.startswith(f"{archive.top}code/") for member in archive.members)


def archive_tensors(archive: Archive, source: Source, budget: Budget | None = None) -> Iterator[Tensor]:
    """The tensors of a zip file that `is_torch`. Raises Unreadable, TooMuch, or one of BROKEN."""
    pickle = archive.find(f"{archive.top}data.pkl")
    if pickle is None:
        raise Unreadable("is no file of torch.save")
    value = run(_stream(archive, pickle), Report(), budget or Budget())
    order = archive.find(f"{archive.top}byteorder")
    big_endian = order is not None and archive.content(order, MIB) == b"big"

    def find(key: str) -> _Place | None:
        member = archive.find(f"{archive.top}data/{key}")
        if member is None:
            return None
        if member.method == STORED:
            return archive.packed(member).start, member.size, ""
        return 0, member.size, member.name

    yield from _tensors(value, find, source, big_endian)


def legacy_tensors(window: Window, source: Source) -> Iterator[Tensor]:
    """The tensors of a file that begins with LEGACY_START. Raises Unreadable, TooMuch, or one of BROKEN."""
    stream, report, budget = window.stream(), Report(), Budget()
    *_, machine, value, keys = (run(stream, report, budget) for _ in range(LEGACY_PREAMBLE + 2))
    places = dict(storage_places(stream, keys, report, window.length))
    little = machine.named().get("little_endian") if isinstance(machine, Dict) else True
    yield from _tensors(value, places.get, source, little is False)


def storage_places(
    stream: io.BufferedReader, keys: object, report: Report, length: int
) -> Iterator[tuple[str, _Place]]:
    """Where each storage lies that follows the pickles in the legacy format; the stream is left at their end.

    Raises Unreadable, LookupError, ValueError or struct.error where they are not there.
    """
    end = stream.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str):
            raise Unreadable("has tensors without a key")
        (count,) = struct.unpack("<q", stream.read(8))
        size = size_of(report.storages[key].dtype or "uint8", count)
        if size < 0 or end + 8 + size > length:
            raise Unreadable("is cut off")
        yield key, (end + 8, size, "")
        end = stream.seek(end + 8 + size)


def _stream(archive: Archive, pickle: Member) -> io.BufferedReader:
    if pickle.method == STORED:
        return archive.packed(pickle).stream()
    return Window.whole(io.BytesIO(archive.content(pickle, PICKLE_MAX))).stream()


def _tensors(value: object, find: _Find, source: Source, big_endian: bool) -> Iterator[Tensor]:
    places: dict[str, _Place | None] = {}
    for name, tensor in tensors_in(value):
        key = tensor.storage.key if tensor.storage else ""
        if key not in places:
            places[key] = find(key) if tensor.storage else None
        yield _tensor(name, tensor, places[key], source, big_endian)


def _tensor(name: str, tensor: SavedTensor, place: _Place | None, source: Source, big_endian: bool) -> Tensor:
    fault = _fault(tensor, place)
    pieces: tuple[Piece, ...] = ()
    if place is not None and not fault:
        start, _, member = place
        at = start + size_of(tensor.dtype, tensor.offset)
        pieces = (
            Piece(source, at, tensor.shape, tensor.strides, (0,) * len(tensor.shape), big_endian, member),
        )  # fmt: skip
    return Tensor(name, source.path, (source.path,), tensor.dtype, tensor.shape, pieces, tensor.more, fault)


def _fault(tensor: SavedTensor, place: _Place | None) -> str:
    if tensor.storage is None:
        return "was saved without its elements"
    if place is None:
        return "has no storage in the file"
    if tensor.dtype not in BITS or BITS[tensor.dtype] % 8:
        return "is of a type that is not read here"
    reach = extent(tensor.shape, tensor.strides)
    if reach and size_of(tensor.dtype, tensor.offset + reach) > place[1]:
        return "reaches beyond its storage"
    return ""
