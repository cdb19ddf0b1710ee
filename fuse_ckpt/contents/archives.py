"""The directory of a zip file, read so that nobody can read it in another way unnoticed.

Readers of zip files disagree about files that break the rules: which of two members of one name counts, whether the
names before the data count, where the directory begins. Whatever could be read in two ways is told in `oddities`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from msgspec import Struct

from fuse_ckpt.contents.reading import MIB, Inflating, TooMuch, Unreadable, Window

START = b"PK\x03\x04"
DIRECTORY_MAX = 32 * MIB  # about 400,000 members
COMMENT_MAX = 0xFFFF
STORED, DEFLATED = 0, 8
DIRECTORY_MARK = 0x10  # in the outer attributes: torch's reader then takes the part for an empty one
DESCRIPTORS = (0, 12, 16, 20, 24)  # bytes between a member's data and the next one: sizes that came after the data
ODDITIES_MAX = 10

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_MEMBER = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_FULL = {16: 0xFFFF, 32: 0xFFFFFFFF}


class Member(Struct, frozen=True):
    """One file in a zip file: its name, how it is packed, its bytes packed and unpacked, where its header begins."""

    name: str
    method: int
    flags: int
    packed: int
    size: int
    header: int


class Archive:
    """The members of a zip file, in the order of its directory, of at most `directory_max` bytes.

    Raises Unreadable, TooMuch.
    """

    def __init__(self, window: Window, directory_max: int = DIRECTORY_MAX) -> None:
        self.oddities: dict[str, None] = {}
        self._window = window
        self._directory_at, length, count = self._find_directory()
        if length > directory_max:
            raise TooMuch(f"has a zip directory longer than {directory_max:,} bytes, which was not read")
        self.members = list(self._read_directory(window.read(self._directory_at, length), count))
        self._by_name: dict[str, Member] = {}
        for member in self.members:
            self._note_name(member)

    @property
    def top(self) -> str:
        """What torch takes for the directory that all is in: that of the first member, with its slash."""
        name = self.members[0].name if self.members else ""
        return name[: name.find("/") + 1]

    def find(self, name: str) -> Member | None:
        return self._by_name.get(name.lower())

    def packed(self, member: Member) -> Window:
        """The member's bytes as they lie in the file."""
        return self._window.part(self._data_at(member), member.packed)

    def opened(self, member: Member) -> Window | Inflating:
        """The member's bytes, whether it is stored or deflated."""
        packed = self.packed(member)
        if member.method == STORED:
            return packed
        if member.method != DEFLATED or member.flags & 1:
            raise TooMuch("is compressed in a way that is not read here")
        return Inflating(packed, member.size, lambda: zlib.decompressobj(-zlib.MAX_WBITS))

    def content(self, member: Member, limit: int) -> bytes:
        """All of the member's bytes. Raises TooMuch where they are more than `limit`."""
        if member.size > limit:
            raise TooMuch(f"has a part of {member.size:,} bytes, which was not read")
        return self.opened(member).read(0, member.size)

    def check(self) -> None:
        """Compare the directory with the headers before the data, and note bytes that belong to no member."""
        end = 0
        for member in sorted(self.members, key=lambda one: one.header):
            if member.header - end not in DESCRIPTORS or (end == 0 and member.header):
                self._odd("has bytes that belong to no part of it, or parts that overlap")
            end = self._data_at(member) + member.packed
        if self._directory_at - end not in DESCRIPTORS:
            self._odd("has bytes that belong to no part of it, or parts that overlap")

    def _odd(self, what: str) -> None:
        if len(self.oddities) < ODDITIES_MAX:
            self.oddities[what] = None

    def _note_name(self, member: Member) -> None:
        key = member.name.lower()  # torch looks names up without regard to case
        if key in self._by_name:
            self._odd("has two parts of the same name")
        if "\0" in key:
            self._odd("has a part whose name has a NUL in it")
        self._by_name[key] = member

    def _data_at(self, member: Member) -> int:
        """Where the member's data begins, by the header before it; notes where that header says something else."""
        header = self._window.read(member.header, _LOCAL.size)
        fields = _LOCAL.unpack(header)
        flags, method, packed, size, name_length, extra_length = (*fields[3:5], *fields[8:12])
        name = _name(self._window.read(member.header + _LOCAL.size, name_length), flags)
        sizes_follow = bool(flags & 8)
        same_sizes = sizes_follow or (
            packed in (member.packed, _FULL[32]) and size in (member.size, _FULL[32])  # the full ones are in a field
        )
        if fields[0] != START or name != member.name or method != member.method or not same_sizes:
            self._odd("has a part that its directory describes otherwise than the part itself")
        return int(member.header + _LOCAL.size + name_length + extra_length)

    def _find_directory(self) -> tuple[int, int, int]:
        """Place, length and count of the directory."""
        window = self._window
        tail_at = max(0, window.length - _END.size - COMMENT_MAX)
        tail = window.read(tail_at, window.length - tail_at)
        places = [at for at in _places(tail, b"PK\x05\x06") if _ends_file(tail, at)]
        if not places:
            raise Unreadable("is a zip file that is cut off or broken")
        if len(places) > 1:
            self._odd("has two ends")
        _, _, _, _, count, length, offset, _ = _END.unpack_from(tail, places[-1])
        end = tail_at + places[-1]
        if wide := self._wide_end(end):
            for narrow, full, value in zip((count, length, offset), (16, 32, 32), wide[1:], strict=True):
                if narrow not in (_FULL[full], value):
                    self._odd("has two ends that say different things")
            end, count, length, offset = wide
        if offset + length != end:
            self._odd("has bytes before its beginning or after its directory")
        return offset, length, count

    def _wide_end(self, end: int) -> tuple[int, int, int, int] | None:
        """Place of the zip64 end record, and count, length and place of the directory by its word."""
        if end < _LOCATOR64.size:
            return None
        locator = self._window.read(end - _LOCATOR64.size, _LOCATOR64.size)
        if not locator.startswith(b"PK\x06\x07"):
            return None
        at = _LOCATOR64.unpack(locator)[2]
        fields = _END64.unpack(self._window.read(at, _END64.size))
        if fields[0] != b"PK\x06\x06":
            raise Unreadable("is a zip file that is cut off or broken")
        return (at, *fields[7:10])

    def _read_directory(self, directory: bytes, count: int) -> Iterator[Member]:
        at = 0
        for _ in range(count):
            fields = _MEMBER.unpack_from(directory, at)
            if fields[0] != b"PK\x01\x02":
                raise Unreadable("has a broken zip directory")
            flags, method = fields[5:7]
            packed, size, name_length, extra_length, comment_length = fields[10:15]
            at += _MEMBER.size
            name = _name(directory[at : at + name_length], flags)
            extra = directory[at + name_length : at + name_length + extra_length]
            size, packed, header = _widened(extra, size, packed, fields[18])
            if fields[17] & DIRECTORY_MARK or (method == STORED and packed != size):
                self._odd("has a part that is no file of the length that it says")
            yield Member(name, method, flags, packed, size, header)
            at += name_length + extra_length + comment_length
        if at != len(directory):
            self._odd("has a directory with more in it than its parts")


def _places(data: bytes, what: bytes) -> Iterator[int]:
    at = data.find(what)
    while at >= 0:
        yield at
        at = data.find(what, at + 1)


def _ends_file(tail: bytes, at: int) -> bool:
    return len(tail) - at >= _END.size and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail)


def _name(raw: bytes, flags: int) -> str:
    return raw.decode("utf-8" if flags & 0x800 or raw.isascii() else "cp437", "surrogateescape")


def _widened(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Size, packed size and place of a member, from the zip64 field where the narrow ones overflow."""
    wide = _wide_values(extra)
    values = [next(wide, value) if value == _FULL[32] else value for value in (size, packed, header)]
    return values[0], values[1], values[2]


def _wide_values(extra: bytes) -> Iterator[int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            values = extra[at + 4 : at + 4 + length]
            yield from (value for (value,) in struct.iter_unpack("<Q", values[: len(values) // 8 * 8]))
            return
        at += 4 + length
