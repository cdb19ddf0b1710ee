"""Bytes of a file that nobody trusts: every length that it claims is checked before anything is read or kept."""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

MIB = 1024 * 1024

Blobs = Callable[[str], BinaryIO]  # digest → its bytes, seekable; the caller closes it. Raises CorruptBlob, OSError

# What the bytes of a foreign or broken file can raise on the way through struct, zlib, json and pickletools.
BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


class Unreadable(ValueError):
    """A file does not hold what it should; the message follows the file's name."""


class TooMuch(Unreadable):
    """A file may be right, and asks for more memory or time than we give."""


class NoPickle(Unreadable):
    """Every unpickler stops here, and has done nothing so far that `Report` does not tell."""


class Window:
    """`length` bytes of `file` from `start`, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file = file
        self.start = start
        self.length = length

    @classmethod
    def whole(cls, file: BinaryIO) -> Window:
        return cls(file, 0, file.seek(0, io.SEEK_END))

    def part(self, start: int, length: int) -> Window:
        """A window in this one. Raises Unreadable where it would reach beyond."""
        if start < 0 or length < 0 or start + length > self.length:
            raise Unreadable("is cut off")
        return Window(self._file, self.start + start, length)

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`. Raises Unreadable where they are not there."""
        buffer = bytearray(self.part(start, length).length)
        self.read_into(start, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes from `start` on. Raises Unreadable where there are fewer."""
        self._file.seek(self.part(start, len(buffer)).start)
        while buffer:
            count = self._file.readinto(buffer)  # type: ignore[attr-defined]
            if not count:
                raise Unreadable("is cut off")
            buffer = buffer[count:]

    def peek(self, length: int) -> bytes:
        """Its first bytes, as many of `length` as there are."""
        return self.read(0, min(length, self.length))

    def stream(self) -> io.BufferedReader:
        """The bytes from the first to the last, as a stream."""
        return io.BufferedReader(_Raw(self), 64 * 1024)


class _Raw(io.RawIOBase):
    def __init__(self, window: Window) -> None:
        self._window = window
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._window.length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._window.length - self._at))
        if count:
            buffer[:count] = self._window.read(self._at, count)
            self._at += count
        return count


class Decompressor(Protocol):
    """What zlib, bz2 and lzma make."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class Inflating:
    """The bytes of a deflated part of a file, read forwards; going back begins anew, `RESTARTS` times at most."""

    RESTARTS = 4
    STEP = 256 * 1024  # packed bytes that are read at once

    def __init__(self, packed: Window, length: int, kind: Callable[[], Decompressor]) -> None:
        self.length = length
        self._packed = packed
        self._kind = kind
        self._restarts = -1
        self._restart()

    def read(self, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`. Raises Unreadable where they are not there, TooMuch."""
        if start < self._at:
            self._restart()
        while self._at < start:
            self._some(min(start - self._at, MIB))
        pieces = []
        while length:
            pieces.append(self._some(length))
            length -= len(pieces[-1])
        return b"".join(pieces)

    def read_into(self, start: int, buffer: memoryview) -> None:
        buffer[:] = self.read(start, len(buffer))

    def pieces(self, limit: int) -> Iterator[bytes]:
        """All that is left, or `limit` bytes of it, bit by bit. Raises Unreadable where it is cut off."""
        while not self._engine.eof and self._at < limit:
            yield self._next(min(MIB, limit - self._at))
        if self._at < limit and (self._rest or self._fed < self._packed.length or self._engine.unused_data):
            raise Unreadable("has bytes after what is compressed")

    def _restart(self) -> None:
        self._restarts += 1
        if self._restarts > self.RESTARTS:
            raise TooMuch("is compressed, and its order of bytes is another one")
        self._engine = self._kind()
        self._fed = self._at = 0
        self._rest = b""

    def _some(self, length: int) -> bytes:
        if not (data := self._next(length)):
            raise Unreadable("is cut off")
        return data

    def _next(self, length: int) -> bytes:
        """At most `length` bytes; none only at the end. Raises Unreadable where there is no end."""
        while True:
            if not self._engine.eof and getattr(self._engine, "needs_input", not self._rest):
                count = min(self.STEP, self._packed.length - self._fed)
                self._rest = self._packed.read(self._fed, count)
                self._fed += count
            try:
                data = self._engine.decompress(self._rest, length)
            except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise Unreadable("is broken where it is compressed") from error
            self._rest = getattr(self._engine, "unconsumed_tail", b"")
            if data or self._engine.eof:
                self._at += len(data)
                return data
            if not self._rest and self._fed == self._packed.length:
                raise Unreadable("is cut off")
