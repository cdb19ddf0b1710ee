"""Is a zip file whole: torch's, numpy's, Keras's? Its directory is read, and the small members that tell most."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

from msgspec import Struct

from fuse_ckpt.staging.reading import read_at

START = b"PK\x03\x04"
DIRECTORY_MAX = 32 << 20  # bytes, half a million members; of a longer one only the place is checked
COMMENT_MAX = 0xFFFF
SMALL = 1 << 20  # bytes of a member that is read to see whether it is what was written: data.pkl, version, scalars
CHECKED_MAX = 16 << 20  # bytes read so in one file
HEADERS_MAX = 20_000  # members whose own header is looked at; a model has hundreds
_STORED = 0
_CHUNK = 1 << 20
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_MEMBER = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class _Member(Struct):
    """One member as the directory has it: sizes in bytes, `start` of its own header, `crc` 0 where none was made."""

    name: bytes
    start: int
    packed: int
    method: int
    crc: int


def fault_of_zip(fd: int, size: int, *, thorough: bool) -> str | None:
    """What the file lacks. `thorough`: all stored members are read and compared, not the small ones alone."""
    tail_at = max(0, size - _END.size - COMMENT_MAX)
    tail = read_at(fd, size - tail_at, tail_at)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        directory = _directory(fd, tail, at, tail_at)
        if directory is not None:
            return _fault_of_members(fd, *directory, thorough=thorough)
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return "is cut off: the zip file has no end record"


def fault_of_zips(fd: int, size: int) -> str | None:
    """What a file lacks that is zips one after another, each with offsets of its own, as a shard of a distributed
    checkpoint is: whether the last one is there to its end. How many there are, others say."""
    end = read_at(fd, _END.size, size - _END.size) if size >= _END.size else b""
    if not end.startswith(b"PK\x05\x06"):
        return "is cut off: it does not end as a zip file does"
    at = size - _END.size
    _, _, _, _, _, length, offset, _ = _END.unpack(end)
    start = at - length - offset
    locator = read_at(fd, _LOCATOR64.size, at - _LOCATOR64.size) if at >= _LOCATOR64.size else b""
    if locator.startswith(b"PK\x06\x07"):
        start = at - _LOCATOR64.size - _END64.size - _LOCATOR64.unpack(locator)[2]
    if start < 0 or read_at(fd, len(START), start) != START:
        return "is cut off: its last zip file has no beginning"
    return None


def _directory(fd: int, tail: bytes, at: int, tail_at: int) -> tuple[int, int, int] | None:
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
    locator = read_at(fd, _LOCATOR64.size, end - _LOCATOR64.size) if end >= _LOCATOR64.size else b""
    if locator.startswith(b"PK\x06\x07"):
        end = _LOCATOR64.unpack(locator)[2]
        record = read_at(fd, _END64.size, end) if end < tail_at + at else b""
        if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
            return None
        *_, count, length, offset = _END64.unpack(record)
    return (offset, length, count) if offset + length == end else None


def _fault_of_members(fd: int, offset: int, length: int, count: int, *, thorough: bool) -> str | None:
    if length > DIRECTORY_MAX:
        return None
    budget = CHECKED_MAX
    try:
        for number, member in enumerate(_members(read_at(fd, length, offset), count)):
            if number >= HEADERS_MAX and not thorough:
                fault = _beyond(member.start + _LOCAL.size + len(member.name) + member.packed, offset)
            else:
                small = member.packed <= min(SMALL, budget)
                budget -= member.packed if small else 0
                fault = _fault_of_member(fd, member, offset, read=small or thorough)
            if fault is not None:
                return fault
    except ValueError:
        return "has a broken zip directory"
    return None


def _members(directory: bytes, count: int) -> Iterator[_Member]:
    """Raises ValueError where the bytes are not `count` entries and nothing else."""
    at = 0
    for _ in range(count):
        if len(directory) - at < _MEMBER.size or not directory.startswith(b"PK\x01\x02", at):
            raise ValueError
        fields = _MEMBER.unpack_from(directory, at)
        method, crc, packed, unpacked, start = fields[6], fields[9], fields[10], fields[11], fields[18]
        name_length, extra_length, comment_length = fields[12:15]
        name_at = at + _MEMBER.size
        extra_at = name_at + name_length
        at = extra_at + extra_length + comment_length
        packed, start = _wide(directory[extra_at : extra_at + extra_length], unpacked, packed, start)
        yield _Member(directory[name_at:extra_at], start, packed, method, crc)
    if at != len(directory):
        raise ValueError


def _fault_of_member(fd: int, member: _Member, end: int, *, read: bool) -> str | None:
    header = read_at(fd, _LOCAL.size, member.start)
    if len(header) < _LOCAL.size or not header.startswith(START):
        return f"has a zip member that is not where its directory says: {_shown(member)}"
    name_length, extra_length = _LOCAL.unpack(header)[9:11]
    data_at = member.start + _LOCAL.size + name_length + extra_length
    fault = _beyond(data_at + member.packed, end)
    if fault is None and read and member.method == _STORED and member.crc and _crc(fd, data_at, member) != member.crc:
        fault = f"has a zip member whose bytes are not those that were written: {_shown(member)}"
    return fault


def _beyond(member_end: int, end: int) -> str | None:
    return "has a zip member that reaches beyond its data" if member_end > end else None


def _crc(fd: int, at: int, member: _Member) -> int:
    crc, end = 0, at + member.packed
    while at < end:
        data = os.pread(fd, min(_CHUNK, end - at), at)
        if not data:
            break
        crc = zlib.crc32(data, crc)
        at += len(data)
    return crc


def _shown(member: _Member) -> str:
    return ascii(member.name.decode(errors="replace"))[1:-1][:80]


def _wide(extra: bytes, unpacked: int, packed: int, start: int) -> tuple[int, int]:
    """Packed size and place of a member, from the zip64 field where the narrow ones overflow."""
    wide = iter(_zip64_values(extra))
    values = [next(wide, value) if value == 0xFFFFFFFF else value for value in (unpacked, packed, start)]
    return values[1], values[2]


def _zip64_values(extra: bytes) -> list[int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = extra[at + 4 : at + 4 + length]
            return [value for (value,) in struct.iter_unpack("<Q", values[: len(values) // 8 * 8])]
        at += 4 + length
    return []
