"""Is a unit whole by its content? A few small reads per file, whatever its size; the data itself is not read."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import re
import stat
import struct
from collections.abc import Collection, Iterable, Sequence

from fuse_ckpt.staging.units import is_temporary

MIB = 1024 * 1024
JSON_MAX = 16 * MIB  # a longer one is taken as whole
SAFETENSORS_HEADER_MAX = 100_000_000  # the format's own limit
DIRECTORY_MAX = 64 * MIB  # of a zip; in a longer one only its place is checked
COMMENT_MAX = 0xFFFF

_NEVER_EMPTY = (".pt", ".pth", ".ckpt", ".bin", ".npz", ".keras", ".zip")
_ZIP_START = b"PK\x03\x04"
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_MEMBER = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL_HEADER = 30  # bytes, before the name
_RANK_DATA = re.compile(r"__(\d+)_\d+\.distcp")


def fault_of(root_fd: int, paths: Sequence[str]) -> str | None:
    """Why the unit whose files are `paths`, relative to the directory `root_fd`, is not whole: one line. None: it is.

    A type that cannot be checked counts as whole, a symlink too. Raises OSError where the disk cannot be read.
    """
    present = frozenset(paths)
    for path in sorted(present):
        fault = _fault_of_name(path) or _fault_of_file(root_fd, path, present)
        if fault is not None:
            return fault
    return _fault_of_distributed(root_fd, present)


def _fault_of_name(path: str) -> str | None:
    parts = path.split("/")
    if any(map(is_temporary, parts)):
        return f"a temporary file, {_shown(path)}, is left"
    if parts[-1].endswith("-unfinished"):
        return f"{_shown(path)} says that the save was not finished"
    return None


def _fault_of_file(root_fd: int, path: str, present: Collection[str]) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return f"{_shown(path)} is missing"
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        fault = _fault_of_content(fd, status.st_size, path, present)
    finally:
        os.close(fd)
    return None if fault is None else f"{_shown(path)} {fault}"


def _fault_of_content(fd: int, size: int, path: str, present: Collection[str]) -> str | None:
    name = path.lower()
    if name.endswith(".safetensors"):
        return _fault_of_safetensors(fd, size)
    if name.endswith(".json"):
        return _fault_of_json(fd, size, path, present)
    if size == 0:
        return "is empty" if name.endswith(_NEVER_EMPTY) else None
    start = _read_at(fd, len(_ZIP_START), 0)
    if start == _ZIP_START:
        return _fault_of_zip(fd, size)
    # One to three bytes of a zip's first four: cut off at once.
    return "is cut off" if _ZIP_START.startswith(start) and name.endswith(_NEVER_EMPTY) else None


def _fault_of_safetensors(fd: int, size: int) -> str | None:
    prefix = _read_at(fd, 8, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        return "is cut off in its header"
    if length > SAFETENSORS_HEADER_MAX:
        return "has a header longer than the format allows"
    try:
        header = json.loads(_read_at(fd, length, 8), parse_int=_small_int)
        spans = sorted(_span(tensor) for name, tensor in header.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "has a header that cannot be read"
    end = 0
    for first, last in spans:
        if first != end or last < first:
            return "has tensors that overlap or leave gaps"
        end = last
    if 8 + length + end != size:
        return f"is {size} bytes long, its header says {8 + length + end}"
    return None


def _span(tensor: dict[str, list[int]]) -> tuple[int, int]:
    first, last = tensor["data_offsets"]
    if type(first) is not int or type(last) is not int:
        raise TypeError("data_offsets are integers")
    return first, last


def _small_int(digits: str) -> int:
    # int() refuses more than 4300 digits, and takes long over fewer; no size or offset has more than 20.
    return int(digits) if len(digits) <= 20 else 0


def _fault_of_json(fd: int, size: int, path: str, present: Collection[str]) -> str | None:
    if size > JSON_MAX:
        return None
    if posixpath.basename(path) == "config.json":  # foreign ones are many; it costs MODEL and VERSION, with a note
        return None
    try:
        value = json.loads(_read_at(fd, size, 0), parse_int=_small_int)
    except json.JSONDecodeError as error:
        # One document after another (a log of metrics, a line each) is not cut off.
        return None if error.msg == "Extra data" else "is not JSON, or is cut off"
    except ValueError:
        return "is not JSON, or is cut off"
    except RecursionError:
        return None
    if path.endswith((".index.json", ".weights.json")) and isinstance(value, dict):
        return _fault_of_index(value.get("weight_map"), posixpath.dirname(path), present)
    return None


def _fault_of_index(weight_map: object, directory: str, present: Collection[str]) -> str | None:
    if not isinstance(weight_map, dict):
        return None
    for shards in weight_map.values():
        for shard in shards if isinstance(shards, list) else [shards]:
            if isinstance(shard, str) and posixpath.normpath(posixpath.join(directory, shard)) not in present:
                return f"names {_shown(shard)}, which is missing"
    return None


def _fault_of_zip(fd: int, size: int) -> str | None:
    tail_at = max(0, size - _END.size - COMMENT_MAX)
    tail = _read_at(fd, size - tail_at, tail_at)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        directory = _zip_directory(fd, tail, at, tail_at)
        if directory is not None:
            return _fault_of_zip_members(fd, *directory)
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return "is cut off: the zip file has no end record"


def _zip_directory(fd: int, tail: bytes, at: int, tail_at: int) -> tuple[int, int, int] | None:
    """Place, length and count of the central directory, if the bytes at `at` are this file's end record.

    The directory must end where the end record begins: a zip stored inside, whose offsets count from its own start,
    does not pass for the end of a file that is cut off.
    """
    if len(tail) - at < _END.size:
        return None
    _, _, _, _, count, length, offset, comment = _END.unpack_from(tail, at)
    end = tail_at + at
    if at + _END.size + comment > len(tail):
        return None
    locator = _read_at(fd, _LOCATOR64.size, end - _LOCATOR64.size) if end >= _LOCATOR64.size else b""
    if locator.startswith(b"PK\x06\x07"):
        end = _LOCATOR64.unpack(locator)[2]
        record = _read_at(fd, _END64.size, end) if end < tail_at + at else b""
        if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
            return None
        *_, count, length, offset = _END64.unpack(record)
    return (offset, length, count) if offset + length == end else None


def _fault_of_zip_members(fd: int, offset: int, length: int, count: int) -> str | None:
    if length > DIRECTORY_MAX:
        return None
    directory = _read_at(fd, length, offset)
    at = 0
    for _ in range(count):
        if len(directory) - at < _MEMBER.size or not directory.startswith(b"PK\x01\x02", at):
            return "has a broken zip directory"
        fields = _MEMBER.unpack_from(directory, at)
        name_length, extra_length, comment_length = fields[12:15]
        extra = directory[at + _MEMBER.size + name_length :][:extra_length]
        packed, start = _wide_fields(extra, fields[11], fields[10], fields[18])
        if start + _LOCAL_HEADER + name_length + packed > offset:
            return "has a zip member that reaches beyond its data"
        at += _MEMBER.size + name_length + extra_length + comment_length
    return None if at == length else "has a broken zip directory"


def _wide_fields(extra: bytes, unpacked: int, packed: int, start: int) -> tuple[int, int]:
    """Packed size and place of a zip member, from the zip64 field where the narrow ones overflow."""
    wide = iter(_zip64_values(extra))
    values = [next(wide, value) if value == 0xFFFFFFFF else value for value in (unpacked, packed, start)]
    return values[1], values[2]


def _zip64_values(extra: bytes) -> Iterable[int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = extra[at + 4 : at + 4 + length]
            return [value for (value,) in struct.iter_unpack("<Q", values[: len(values) // 8 * 8])]
        at += 4 + length
    return []


def _fault_of_distributed(root_fd: int, present: Collection[str]) -> str | None:
    """Whether every shard of a distributed checkpoint has a `.metadata` beside it that was written after it."""
    for path in sorted(path for path in present if path.endswith(".distcp")):
        directory, name = posixpath.split(path)
        metadata = posixpath.join(directory, ".metadata")
        rank = _RANK_DATA.fullmatch(name)
        if metadata not in present and rank is not None:
            metadata = posixpath.join(directory, f"__{rank[1]}.metadata")  # each rank wrote its own
        if metadata not in present:
            return f"{_shown(path)} has no .metadata beside it"
        if _mtime_ns(root_fd, metadata) < _mtime_ns(root_fd, path):
            return f"{_shown(metadata)} is older than {_shown(path)}"
    return None


def _mtime_ns(root_fd: int, path: str) -> int:
    return os.stat(path, dir_fd=root_fd, follow_symlinks=False).st_mtime_ns


def _read_at(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset`; fewer only at the file's end."""
    pieces = []
    while length > 0:
        piece = os.pread(fd, length, offset)
        if not piece:
            break
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)
