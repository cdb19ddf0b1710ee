"""Nothing that is called safe makes Python's own unpickler look for a name that is not allowed.

The unpickler here finds and calls nothing: every name stands for an inert class.
"""

from __future__ import annotations

import io
import pickle
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_ckpt.contents.allowed import WEIGHTS
from fuse_ckpt.contents.scanning import scan_file
from tests.contents.samples import EVIL, name, pickled, saved, text, window


class Inert:
    """Whatever is done with it, nothing happens."""

    def __init__(self, *arguments: object, **more: object) -> None: ...
    def __new__(cls, *arguments: object, **more: object) -> Inert:
        return object.__new__(cls)

    def __call__(self, *arguments: object) -> Inert:
        return self

    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, value: object) -> None: ...
    def extend(self, values: object) -> None: ...
    def add(self, value: object) -> None: ...
    def __setstate__(self, state: object) -> None: ...


class Unpickler(pickle._Unpickler):
    """Python's own in Python, without a way to the world."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="latin-1")
        self.names: list[str] = []
        self.proto = 0

    def find_class(self, module: str, attribute: str) -> Any:
        if self.proto < 3:
            module, attribute = _moved(module, attribute)
        self.names.append(f"{module}.{attribute}")
        return type("Found", (Inert,), {})

    def get_extension(self, code: int) -> None:
        self.names.append(f"extension {code}")
        self.append(Inert)  # type: ignore[attr-defined]

    def persistent_load(self, identity: object) -> Inert:
        if not isinstance(identity, tuple) or not identity or identity[0] != "storage":
            self.names.append("something that is no storage")
        return Inert()


def _moved(module: str, attribute: str) -> tuple[str, str]:
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    if (module, attribute) in NAME_MAPPING:
        found: tuple[str, str] = NAME_MAPPING[module, attribute]
        return found
    return IMPORT_MAPPING.get(module, module), attribute


def names_of(data: bytes) -> list[str]:
    """The names that unpickling looks for, one pickle after another, until something goes wrong."""
    file = io.BytesIO(data)
    names: list[str] = []
    while file.tell() < len(data):
        unpickler = Unpickler(file)
        try:
            unpickler.load()
        except Exception:
            return [*names, *unpickler.names]
        names += unpickler.names
    return names


def agree(data: bytes) -> None:
    found = scan_file(window(data), "x.pkl")
    names = names_of(data)
    if found.safe:
        assert set(names) <= WEIGHTS, data
    else:
        assert found.others or found.oddities or found.doubts
    if not found.doubts:
        assert {one for one in names if "." in one and " " not in one} <= {*found.allowed, *found.others}, data


BLOCKS = [
    b"(", b"0", b"1", b"2", b")", b"]", b"}", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"l", b"d", b"R",
    b"o", b"b", b"\x81", b"\x92", b"\x93", b"\x8f", b"\x90", b"\x91", b"\x94", b"N", b"\x88", b"K\x01", b"I7\n", b"Q",
    b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"p2\n", b"g2\n", b"r\x03\x00\x00\x00", b"j\x03\x00\x00\x00", b"\x82\x05",
    b"Pid\n", b"ios\nsystem\n", b"\x95\x08" + bytes(7), b"G" + bytes(8), b".", b"\x80\x04", b"S'os'\n", b"Vsystem\n",
    text("os"), text("system"), text("storage"), text("torch"), text("Size"), b"\x8c\x02os", b"\x8c\x06system",
    name("os", "system"), name("collections", "OrderedDict"), name("torch", "Size"), name("__builtin__", "set"),
    name("torch.storage", "UntypedStorage"), name("_codecs", "encode"), name("", ""), b"C\x03abc",
    b"\x8d\x01" + bytes(7) + b"x", b"\x80\x02",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), max_size=25), st.sampled_from([b"", b"\x80\x02", b"\x80\x04"]))
def test_what_is_safe_looks_for_no_other_name(blocks: list[bytes], start: bytes) -> None:
    agree(start + b"".join(blocks) + b".")


def test_mutilated_pickles_too() -> None:
    chosen = random.Random(5)
    wholes = [
        EVIL,
        pickled(name("torch", "Size") + b")R}" + text("a") + name("os", "getcwd") + b"sN\x87"),
        pickle.dumps({"a": [1, {2}, "x"]}, 2),
    ]
    state = saved({"w": [1.5, "x"], "n": None})
    wholes.append(state[state.index(b"\x80\x02") : state.rindex(b".", 0, state.index(b"PK\x07\x08") + 200) + 1][:200])
    for _ in range(6000):
        data = bytearray(chosen.choice(wholes))
        for _ in range(chosen.randint(1, 3)):
            way, at = chosen.random(), chosen.randrange(len(data))
            if way < 0.5:
                data[at] = chosen.choice(
                    b"(012)]}tabesuRQ.hqcX\x93\x94\x85\x81CioSV\x80" + bytes([chosen.randrange(256)])
                )
            elif way < 0.75:
                del data[at]
            else:
                data[at:at] = chosen.choice(BLOCKS)
        agree(bytes(data))
