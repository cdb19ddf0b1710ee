"""The opcodes of a pickle, one after another. As pickletools.genops, but a long value is passed over, not kept."""

from __future__ import annotations

import codecs
import io
import pickletools
import struct
from collections.abc import Callable, Iterator
from typing import cast

from fuse_ckpt.contents.reading import MIB, NoPickle, TooMuch, Unreadable
from fuse_ckpt.contents.symbols import Opaque

OPCODES_MAX = 3_000_000  # of one file; about 75,000 tensors, seconds of work
VALUE_MAX = 1 * MIB  # bytes of a string that is looked at: it may be a pickle itself
NUMBER_MAX = 400  # bytes or digits of a number
KEPT_MAX = 4096  # bytes of a string that is kept as a value: names and keys are shorter
TEXT_MAX = 64 * MIB  # of all strings that are kept
LINE_MAX = 64 * 1024  # bytes of a line in the text forms

_AT_FRAMES = frozenset({"FRAME", "STOP"})

Opcode = tuple[str, object]  # its name in pickletools, its argument


class Budget:
    """How much may still be read, over all pickles of a file."""

    def __init__(self, opcodes: int = OPCODES_MAX) -> None:
        self._opcodes = opcodes
        self._text = TEXT_MAX

    def opcode(self) -> None:
        """One more. Raises TooMuch."""
        self._opcodes -= 1
        if self._opcodes < 0:
            raise TooMuch(f"has pickles of more than {OPCODES_MAX:,} opcodes, which were not read")

    def kept(self, value: object) -> object:
        """The value, if it is short enough to be kept. Raises TooMuch."""
        if not isinstance(value, str | bytes):
            return value
        if len(value) > KEPT_MAX:
            return Opaque.SKIPPED
        self._text -= len(value)
        if self._text < 0:
            raise TooMuch("has pickles with more than 64 MiB of text, which were not read")
        return value


def opcodes(stream: io.BufferedReader, budget: Budget) -> Iterator[Opcode]:
    """The opcodes up to STOP, where the stream is left. An argument that is too long is Opaque.SKIPPED.

    Raises Unreadable or ValueError where the pickle breaks off, TooMuch where the budget is used up.
    """
    frame_end = 0
    while True:
        code = stream.read(1)
        if not code:
            raise NoPickle("breaks off in a pickle")
        found = _OPCODES.get(code)
        if found is None:
            raise NoPickle("has a pickle with an opcode that does not exist")
        budget.opcode()
        name, read = found
        argument = None if read is None else read(stream)
        if name in _AT_FRAMES:
            if stream.tell() < frame_end:
                # Whoever loads the next pickle begins behind the frame, and that would not be where we begin.
                raise Unreadable("has a pickle that ends, or begins a frame, within a frame")
            frame_end = stream.tell() + argument if isinstance(argument, int) else 0
        yield name, argument
        if name == "STOP":
            return


def _exactly(stream: io.BufferedReader, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise Unreadable("breaks off in a pickle")
    return data


def _prefixed(
    length: struct.Struct, decode: Callable[[bytes], object], longest: int = VALUE_MAX
) -> Callable[[io.BufferedReader], object]:
    """A reader of a value whose length stands before it."""

    def read(stream: io.BufferedReader) -> object:
        (count,) = length.unpack(_exactly(stream, length.size))
        if count < 0:
            raise Unreadable("has a pickle with a value of negative length")
        if count <= longest:
            return decode(_exactly(stream, count))
        end = stream.seek(count, io.SEEK_CUR)
        if end > stream.seek(0, io.SEEK_END):
            raise Unreadable("breaks off in a pickle")
        stream.seek(end)
        return Opaque.SKIPPED

    return read


def _fixed(layout: str) -> Callable[[io.BufferedReader], object]:
    number = struct.Struct(layout)
    return lambda stream: number.unpack(_exactly(stream, number.size))[0]


def _line(decode: Callable[[bytes], object]) -> Callable[[io.BufferedReader], object]:
    """A reader of a value that ends with its line."""

    def read(stream: io.BufferedReader) -> object:
        line = stream.readline(LINE_MAX + 1)
        if len(line) > LINE_MAX:
            raise TooMuch("has a pickle with a line longer than 64 KiB, which was not read")
        if not line.endswith(b"\n"):
            raise Unreadable("has a pickle with a line that does not end")
        return decode(line[:-1])

    return read


def _two_lines(stream: io.BufferedReader) -> object:
    line = cast(Callable[[io.BufferedReader], str], _line(_utf8))
    return line(stream), line(stream)


def _utf8(data: bytes) -> str:
    return data.decode("utf-8")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _latin(data: bytes) -> str:
    return data.decode("latin-1")  # the strings of Python 2, whose encoding nobody noted


def _quoted(data: bytes) -> str:
    if len(data) < 2 or data[0] != data[-1] or data[:1] not in (b"'", b'"'):
        raise Unreadable("has a pickle with a string that has no quotes")
    return _latin(codecs.escape_decode(data[1:-1])[0])


def _raw_unicode(data: bytes) -> str:
    return data.decode("raw-unicode-escape")


def _integer(data: bytes) -> object:
    if data in (b"00", b"01"):
        return data == b"01"
    return _long_integer(data)


def _long_integer(data: bytes) -> object:
    digits = data.strip().removesuffix(b"L")
    # int() takes quadratic time, and no number that is meant is long.
    return int(digits) if len(digits) <= NUMBER_MAX else Opaque.SKIPPED


def _float(data: bytes) -> object:
    return float(data)


def _little_endian(data: bytes) -> object:
    return int.from_bytes(data, "little", signed=True)


_U1, _U4, _I4, _U8 = (struct.Struct(layout) for layout in ("<B", "<I", "<i", "<Q"))
_READERS: dict[str, Callable[[io.BufferedReader], object]] = {
    "int4": _fixed("<i"),
    "uint1": _fixed("<B"),
    "uint2": _fixed("<H"),
    "uint4": _fixed("<I"),
    "uint8": _fixed("<Q"),
    "float8": _fixed(">d"),
    "long1": _prefixed(_U1, _little_endian),
    "long4": _prefixed(_I4, _little_endian, NUMBER_MAX),
    "string1": _prefixed(_U1, _latin),
    "string4": _prefixed(_I4, _latin),
    "bytes1": _prefixed(_U1, bytes),
    "bytes4": _prefixed(_U4, bytes),
    "bytes8": _prefixed(_U8, bytes),
    "bytearray8": _prefixed(_U8, bytes),
    "unicodestring1": _prefixed(_U1, _text),
    "unicodestring4": _prefixed(_U4, _text),
    "unicodestring8": _prefixed(_U8, _text),
    "decimalnl_short": _line(_integer),
    "decimalnl_long": _line(_long_integer),
    "floatnl": _line(_float),
    "stringnl": _line(_quoted),
    "stringnl_noescape": _line(_utf8),
    "stringnl_noescape_pair": _two_lines,
    "unicodestringnl": _line(_raw_unicode),
}
_OPCODES = {
    opcode.code.encode("latin-1"): (opcode.name, None if opcode.arg is None else _READERS[opcode.arg.name])
    for opcode in pickletools.opcodes
}
