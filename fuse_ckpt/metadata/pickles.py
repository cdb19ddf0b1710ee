"""Reads the outline of a pickle without unpickling it.

The opcodes move symbols over a stack: strings and numbers stand for themselves, a dictionary for its named items, an
object for its class and its state, all the rest for whether a tensor is somewhere inside. Nothing is imported, nothing
called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import BinaryIO

from fuse_ckpt.metadata.symbols import (
    EMPTY,
    Global,
    Instance,
    Opaque,
    Outline,
    Row,
    holds_tensors,
    one_of,
    rebuilds_tensor,
    row,
    storage,
    tensor,
)
from fuse_ckpt.metadata.values import Unreadable

OPCODES_MAX = 3_000_000  # about 75,000 tensors; seconds of work
CONTAINERS_MAX = 500_000  # dictionaries, objects and tuples that are kept, of some 200 bytes each


def outline(pickle: BinaryIO) -> object:
    """The symbol of the value that the next pickle in the stream would make; the stream is left behind that pickle.

    Raises Unreadable where it is too long; ValueError, LookupError or another ordinary error where it is no pickle.
    """
    return counted_outline(pickle)[0]


def counted_outline(pickle: BinaryIO) -> tuple[object, int]:
    """The same, and how many tensors it would make. Raises as `outline` does."""
    machine = _Machine()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if count >= OPCODES_MAX:
            raise Unreadable(f"has a pickle of more than {OPCODES_MAX} opcodes, which was not read")
        machine.step(opcode.name, argument)
    return machine.stack[-1], machine.tensors


class _Machine:
    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.tensors = 0
        self.containers = 0

    def step(self, name: str, argument: object) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _HANDLERS:
            _HANDLERS[name](self, argument)
        else:
            self._opaque(name)

    def push(self, symbol: object) -> None:
        if isinstance(symbol, Outline | Instance | Row) and symbol is not EMPTY:
            self.containers += 1
            if self.containers > CONTAINERS_MAX:
                raise Unreadable(f"has a pickle of more than {CONTAINERS_MAX} objects, which was not read")
        self.stack.append(symbol)

    def to_mark(self) -> list[object]:
        at = self.marks.pop()
        taken = self.stack[at:]
        del self.stack[at:]
        return taken

    def _opaque(self, name: str) -> None:
        marked, pops, pushes = _EFFECTS[name]
        taken = self.to_mark() if marked else [self.stack.pop() for _ in range(pops)]
        self.stack.extend(one_of(taken) for _ in range(pushes))

    def add_to_top(self, values: Iterable[object]) -> None:
        # A list is remembered only by what stands on the stack: a shared one may miss a tensor, no matter.
        top = self.stack[-1]
        if isinstance(top, Outline) or not any(map(holds_tensors, values)):
            return
        if isinstance(top, Instance):
            top.tensors = True
        else:
            self.stack[-1] = Opaque.TENSORS

    def mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def pop(self, _: object) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def duplicate(self, _: object) -> None:
        self.stack.append(self.stack[-1])

    def put(self, index: object) -> None:
        self.memo[index if isinstance(index, int) else len(self.memo)] = self.stack[-1]

    def get(self, index: object) -> None:
        assert isinstance(index, int)
        self.stack.append(self.memo[index])

    def empty_dict(self, _: object) -> None:
        self.push(Outline())

    def dict_of_marked(self, _: object) -> None:
        items = self.to_mark()
        self.push(Outline())
        self._set(items)

    def set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_items(self, _: object) -> None:
        self._set(self.to_mark())

    def _set(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, Outline):
            self.add_to_top(items)
            return
        for key, value in zip(items[::2], items[1::2], strict=True):
            target.put(key, value)

    def append(self, _: object) -> None:
        value = self.stack.pop()
        self.add_to_top([value])

    def append_marked(self, _: object) -> None:
        values = self.to_mark()
        self.add_to_top(values)

    def build(self, _: object) -> None:
        state, top = self.stack.pop(), self.stack[-1]
        if isinstance(top, Instance):
            top.build(state)
        else:
            self.add_to_top([state])

    def tuple_of_marked(self, _: object) -> None:
        self.push(row(self.to_mark()))

    def persistent(self, _: object) -> None:
        self.stack.append(storage(self.stack.pop()))

    def global_(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self.stack.append(Global(module, name))

    def stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Global(str(module), str(name)) if type(name) is type(module) is str else Opaque.PLAIN)

    def call(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global):
            self.stack.append(one_of([arguments]))
        elif rebuilds_tensor(function):
            self.tensors += not holds_tensors(arguments)  # a parameter is made of a tensor that is counted already
            self.stack.append(tensor(arguments))
        elif function in _DICTIONARIES:
            self.push(Outline())
        else:
            self.push(Instance(function, arguments))


def _row_of(count: int) -> Callable[[_Machine, object], None]:
    def tuple_of_last(machine: _Machine, _: object) -> None:
        parts = [machine.stack.pop() for _ in range(count)]
        machine.push(row(parts[::-1]))

    return tuple_of_last


def _constant(value: object) -> Callable[[_Machine, object], None]:
    return lambda machine, _: machine.stack.append(value)


def _nothing(machine: _Machine, argument: object) -> None:
    pass


def _effect(opcode: pickletools.OpcodeInfo) -> tuple[bool, int, int]:
    """Whether it takes all down to the mark, else how many symbols it takes; and how many it leaves."""
    return pickletools.markobject in opcode.stack_before, len(opcode.stack_before), len(opcode.stack_after)


_EFFECTS = {opcode.name: _effect(opcode) for opcode in pickletools.opcodes}
_DICTIONARIES = (Global("collections", "OrderedDict"), Global("collections", "defaultdict"), Global("builtins", "dict"))
_NUMBERS = frozenset(["INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"])
_STRINGS = frozenset(
    ["STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"]
)
_LITERALS = _NUMBERS | _STRINGS
_HANDLERS: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "STOP": _nothing,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "EMPTY_DICT": _Machine.empty_dict,
    "DICT": _Machine.dict_of_marked,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_marked,
    "ADDITEMS": _Machine.append_marked,
    "BUILD": _Machine.build,
    "EMPTY_TUPLE": _row_of(0),
    "TUPLE1": _row_of(1),
    "TUPLE2": _row_of(2),
    "TUPLE3": _row_of(3),
    "TUPLE": _Machine.tuple_of_marked,
    "BINPERSID": _Machine.persistent,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
}
