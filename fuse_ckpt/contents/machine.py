"""Runs a pickle over symbols: what it would make, and what it would import and call. Nothing is imported or called.

The stack, the marks and the memo are moved exactly as pickle.py moves them (Python 3.11): a name that is put together
from memoized pieces is the same name here as there.
"""

from __future__ import annotations

import io
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable

from fuse_ckpt.contents.opcodes import Budget, opcodes
from fuse_ckpt.contents.reading import Unreadable
from fuse_ckpt.contents.rebuilding import made_by, storage_of
from fuse_ckpt.contents.report import Report
from fuse_ckpt.contents.symbols import Dict, Global, Made, Opaque


def run(stream: io.BufferedReader, report: Report, budget: Budget) -> object:
    """The symbol of the next pickle's value; the stream is left behind its STOP.

    Whatever the pickle would import and call is in `report`, also where it breaks off. Raises TooMuch, or Unreadable
    or one of BROKEN where it is no pickle.
    """
    machine = _Machine(report)
    for name, argument in opcodes(stream, budget):
        handler = _HANDLERS.get(name)
        if handler is None:
            report.constant(argument)
            machine.push(budget.kept(argument))
        else:
            handler(machine, argument)
    return machine.pop()


def _python_3(module: str, name: str) -> Global:
    """The name as Python 3's unpickler looks for it below protocol 3: Python 2's modules have moved since."""
    if (module, name) in NAME_MAPPING:
        return Global(*NAME_MAPPING[module, name])
    return Global(IMPORT_MAPPING.get(module, module), name)


class _Machine:
    def __init__(self, report: Report) -> None:
        self.stack: list[object] = []
        self.outer: list[list[object]] = []  # the stacks below each mark
        self.memo: dict[int, object] = {}
        self.protocol = 0
        self.report = report

    def pop(self, _: object = None) -> object:
        return self.stack.pop()

    def push(self, value: object) -> None:
        self.stack.append(value)

    def tell_protocol(self, version: object) -> None:
        self.protocol = _index(version)

    # marks and memo

    def mark(self, _: object) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[object]:
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    def drop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def drop_to_mark(self, _: object) -> None:
        self.to_mark()

    def duplicate(self, _: object) -> None:
        self.push(self.stack[-1])

    def put(self, index: object) -> None:
        self.memo[_index(index)] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: object) -> None:
        self.push(self.memo[_index(index)])

    # containers

    def empty_list(self, _: object) -> None:
        self.push([])

    def marked_list(self, _: object) -> None:
        self.push(self.to_mark())

    def empty_tuple(self, _: object) -> None:
        self.push(())

    def marked_tuple(self, _: object) -> None:
        self.push(tuple(self.to_mark()))

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise Unreadable("has a pickle that takes more than it has")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def empty_dict(self, _: object) -> None:
        self.push(Dict())

    def marked_dict(self, _: object) -> None:
        items = self.to_mark()
        self.push(Dict())
        self._set(items)

    def append(self, _: object) -> None:
        value = self.pop()
        self._add([value])

    def append_marked(self, _: object) -> None:
        values = self.to_mark()
        self._add(values)

    def set_item(self, _: object) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def set_marked(self, _: object) -> None:
        self._set(self.to_mark())

    def _add(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.put((None, value) for value in values)

    def _set(self, items: list[object]) -> None:
        target = self.stack[-1]
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, Dict):
            target.put(pairs)

    # names and calls

    def global_(self, argument: object) -> None:
        assert isinstance(argument, tuple)
        self._name(*argument)

    def stack_global(self, _: object) -> None:
        name, module = self.pop(), self.pop()
        if isinstance(name, str) and isinstance(module, str):
            self._name(module, name)
            return
        self.report.odd("imports a name that it puts together while it is loaded")
        self.push(Opaque.UNKNOWN)

    def _name(self, module: str, name: str) -> None:
        found = _python_3(module, name) if self.protocol < 3 else Global(module, name)
        self.report.named(found)
        self.push(found)

    def extension(self, code: object) -> None:
        self.report.odd(f"imports what the loading program has registered as extension {code}")
        self.push(Opaque.UNKNOWN)

    def call(self, _: object) -> None:
        arguments, function = self.pop(), self.pop()
        self._make(function, arguments)

    def call_with_names(self, _: object) -> None:
        names, arguments, function = self.pop(), self.pop(), self.pop()
        self._make(function, arguments)
        top = self.stack[-1]
        if isinstance(top, Made):
            top.state = names

    def instance(self, argument: object) -> None:
        arguments = tuple(self.to_mark())
        self.global_(argument)
        self._make(self.pop(), arguments)

    def object_(self, _: object) -> None:
        function, *arguments = self.to_mark()
        self._make(function, tuple(arguments))

    def _make(self, function: object, arguments: object) -> None:
        self.report.called(function)
        self.push(made_by(function, arguments))

    def build(self, _: object) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Made):
            target.state = state
        elif isinstance(target, Global) or target is Opaque.UNKNOWN:
            self.report.odd(f"changes {target if isinstance(target, Global) else 'a value that is unknown'}")

    # what lies beside the pickle

    def persistent(self, argument: object) -> None:
        self._persistent(argument)

    def persistent_of_stack(self, _: object) -> None:
        self._persistent(self.pop())

    def _persistent(self, identity: object) -> None:
        storage = storage_of(identity)
        if storage is None:
            self.report.odd("asks the loading program for something that is no storage")
            self.push(Opaque.UNKNOWN)
            return
        self.report.storages[storage.key] = storage
        self.push(storage)

    def buffer(self, _: object) -> None:
        self.push(Opaque.SKIPPED)

    def nothing(self, _: object) -> None:
        pass


def _index(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise Unreadable("has a pickle with a number that is none")
    return value


def _pushing(value: object) -> Callable[[_Machine, object], None]:
    return lambda machine, _: machine.push(value)


def _tuple(count: int) -> Callable[[_Machine, object], None]:
    return lambda machine, _: machine.tuple_of(count)


# What is not here pushes its argument: the numbers and the strings.
_HANDLERS: dict[str, Callable[[_Machine, object], object]] = {
    "PROTO": _Machine.tell_protocol,
    "FRAME": _Machine.nothing,
    "STOP": _Machine.nothing,
    "NONE": _pushing(None),
    "NEWTRUE": _pushing(True),
    "NEWFALSE": _pushing(False),
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "EMPTY_LIST": _Machine.empty_list,
    "LIST": _Machine.marked_list,
    "EMPTY_TUPLE": _Machine.empty_tuple,
    "TUPLE": _Machine.marked_tuple,
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "EMPTY_DICT": _Machine.empty_dict,
    "DICT": _Machine.marked_dict,
    "EMPTY_SET": _Machine.empty_list,
    "FROZENSET": _Machine.marked_list,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_marked,
    "ADDITEMS": _Machine.append_marked,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_marked,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "NEWOBJ_EX": _Machine.call_with_names,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.persistent_of_stack,
    "NEXT_BUFFER": _Machine.buffer,
    "READONLY_BUFFER": _Machine.nothing,
}
