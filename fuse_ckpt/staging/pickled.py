"""Pickles are walked, never unpickled: where one ends, and which named values it would make.

The opcodes move symbols over a stack: text, numbers, names of classes, small tuples and dictionaries stand for
themselves, everything else for nothing. Long arguments are stepped over unread, so that neither memory nor time depends
on what a file claims.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fuse_ckpt.staging.reading import read_at

OPCODES_MAX = 1_000_000  # a second or two
TEXT_MAX = 4096  # bytes of an argument that is kept; a longer one is data
ITEMS_MAX = 8  # of a tuple or dictionary that is kept
_WINDOW = 1 << 16
_STOP = ord(".")


class NoPickle(ValueError):
    """The bytes are no pickle."""


class CutOff(ValueError):
    """The bytes end before the pickle does."""


class TooLong(ValueError):
    """It has more opcodes than are walked."""


class Global(NamedTuple):
    """A class or function that the pickle names."""

    module: str
    name: str


class Made(NamedTuple):
    """What calling a class would make."""

    of: Global


class Stream:
    """An open file read from the front, through a window."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._window = b""
        self._start = 0  # of the window in the file
        self._at = 0  # in the window
        self.opcodes_left = OPCODES_MAX

    @property
    def at(self) -> int:
        return self._start + self._at

    def read(self, length: int) -> bytes:
        """Exactly `length` bytes. Raises CutOff."""
        end = self._at + length
        if end > len(self._window):
            self._start += self._at
            self._at, end = 0, length
            self._window = read_at(self._fd, max(_WINDOW, length), self._start)
            if end > len(self._window):
                raise CutOff
        data = self._window[self._at : end]
        self._at = end
        return data

    def skip(self, length: int) -> None:
        """Step over `length` bytes. Raises CutOff."""
        if self.at + length > self._size:
            raise CutOff
        if self._at + length <= len(self._window):
            self._at += length
        else:
            self._start, self._at, self._window = self.at + length, 0, b""

    def line(self) -> bytes:
        """All up to the next newline, which is stepped over."""
        end = self._window.find(b"\n", self._at)
        if end < 0:
            self._start, self._at = self.at, 0
            self._window = read_at(self._fd, _WINDOW, self._start)
            end = self._window.find(b"\n")
            if end < 0:
                raise CutOff if len(self._window) < _WINDOW else NoPickle
        data = self._window[self._at : end]
        self._at = end + 1
        return data


def walk(stream: Stream) -> Iterator[tuple[str, bytes]]:
    """The opcodes of the next pickle by their names, each with its argument (b"" for a long one), until it ends.

    The stream is left behind it. Raises NoPickle, CutOff, TooLong.
    """
    while True:
        known = _OPCODES.get(stream.read(1)[0])
        if known is None:
            raise NoPickle
        if stream.opcodes_left == 0:
            raise TooLong
        stream.opcodes_left -= 1
        name, fixed, counted, lines = known
        if fixed:
            argument = stream.read(fixed)
        elif counted:
            argument = _counted(stream, counted)
        else:
            argument = b"\n".join(stream.line() for _ in range(lines))
        yield name, argument
        if name == "STOP":
            return


def _counted(stream: Stream, width: int) -> bytes:
    length = int.from_bytes(stream.read(width), "little")
    if length <= TEXT_MAX:
        return stream.read(length)
    stream.skip(length)
    return b""


def _layout(opcode: pickletools.OpcodeInfo) -> tuple[str, int, int, int]:
    """An opcode's name; its argument's length, or the width of the length before it, or its number of lines."""
    if opcode.arg is None:
        return opcode.name, 0, 0, 0
    width = {-2: 1, -3: 4, -4: 4, -5: 8}.get(opcode.arg.n, 0)
    lines = (2 if opcode.name in ("GLOBAL", "INST") else 1) if opcode.arg.n == -1 else 0
    return opcode.name, max(0, opcode.arg.n), width, lines


_OPCODES = {ord(opcode.code): _layout(opcode) for opcode in pickletools.opcodes}


class Machine:
    """Walks one pickle after another. `persistent` is told of each persistent id, `built` of each object's state."""

    def __init__(
        self,
        persistent: Callable[[object], None] = lambda value: None,
        built: Callable[[Global, dict[object, object]], None] = lambda made, state: None,
    ) -> None:
        self.persistent = persistent
        self.built = built
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.memoized = 0

    def run(self, stream: Stream) -> None:
        """Walk the next pickle. Raises as `walk` does; NoPickle too where the opcodes make no sense together."""
        self.stack, self.marks, self.memo, self.memoized = [], [], {}, 0
        try:
            for name, argument in walk(stream):
                handler = _HANDLERS.get(name)
                if handler is not None:
                    handler(self, argument)
                else:
                    self.opaque(name)
        except (IndexError, ValueError) as error:
            if isinstance(error, NoPickle | CutOff | TooLong):
                raise
            raise NoPickle from error

    def opaque(self, name: str) -> None:
        marked, pops, pushes = _EFFECTS[name]
        if marked:
            self.to_mark()
        else:
            self.take(pops)
        self.stack.extend([None] * pushes)

    def to_mark(self) -> list[object]:
        return self.take(len(self.stack) - self.marks.pop())

    def take(self, count: int) -> list[object]:
        at = len(self.stack) - count
        if at < 0:
            raise NoPickle
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def remember(self, index: int) -> None:
        self.memoized += 1
        if self.stack[-1] is not None:
            self.memo[index] = self.stack[-1]

    def push_tuple(self, taken: list[object]) -> None:
        self.stack.append(tuple(taken) if 0 < len(taken) <= ITEMS_MAX else None)

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=False):
            if isinstance(target, dict) and len(target) < ITEMS_MAX and isinstance(value, str | int):
                target[key if isinstance(key, str) else None] = value


def _pop(machine: Machine, _: bytes) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.stack.pop()


def _global(machine: Machine, argument: bytes) -> None:
    module, _, name = argument.decode(errors="replace").partition("\n")
    machine.stack.append(Global(module, name))


def _stack_global(machine: Machine, _: bytes) -> None:
    module, name = machine.take(2)
    machine.stack.append(Global(module, name) if isinstance(name, str) and isinstance(module, str) else None)


def _call(machine: Machine, _: bytes) -> None:
    function, _arguments = machine.take(2)
    machine.stack.append(Made(function) if isinstance(function, Global) else None)


def _build(machine: Machine, _: bytes) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Made) and isinstance(state, dict):
        machine.built(target.of, state)


def _persistent_id(machine: Machine, _: bytes) -> None:
    machine.persistent(machine.stack.pop())
    machine.stack.append(None)


def _index(argument: bytes) -> int:
    return int.from_bytes(argument, "little") if len(argument) in (1, 4) else int(argument)


def _effect(opcode: pickletools.OpcodeInfo) -> tuple[bool, int, int]:
    """Whether it takes all down to the mark, else how many symbols it takes; and how many it leaves."""
    return pickletools.markobject in opcode.stack_before, len(opcode.stack_before), len(opcode.stack_after)


def _nothing(machine: Machine, _: bytes) -> None:
    pass


def _text(machine: Machine, argument: bytes) -> None:
    machine.stack.append(argument.decode(errors="surrogateescape"))


def _tuple_of(count: int) -> _Handler:
    return lambda machine, _: machine.push_tuple(machine.take(count))


_Handler = Callable[[Machine, bytes], None]
_EFFECTS = {opcode.name: _effect(opcode) for opcode in pickletools.opcodes}
_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "BINSTRING", "SHORT_BINSTRING"), _text
    ),
    **dict.fromkeys(("BININT1", "BININT2"), lambda m, argument: m.stack.append(int.from_bytes(argument, "little"))),
    **dict.fromkeys(
        ("BININT", "LONG1", "LONG4"),
        lambda m, argument: m.stack.append(int.from_bytes(argument, "little", signed=True)),
    ),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, argument: m.remember(_index(argument))),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, argument: m.stack.append(m.memo.get(_index(argument)))),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _call),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.opaque("POP_MARK")),
    "MEMOIZE": lambda m, _: m.remember(m.memoized),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": _pop,
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "TUPLE": lambda m, _: m.push_tuple(m.to_mark()),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BUILD": _build,
    "BINPERSID": _persistent_id,
}
