from __future__ import annotations

import io
import math
import pickle
import random
import struct
from collections import OrderedDict, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_ckpt.contents.machine import run
from fuse_ckpt.contents.opcodes import Budget
from fuse_ckpt.contents.reading import BROKEN, NoPickle, TooMuch, Unreadable
from fuse_ckpt.contents.report import Report
from fuse_ckpt.contents.symbols import Dict, Global, Made, Opaque
from tests.contents.samples import EVIL, name, pickled, text, window


def outcome(data: bytes, budget: Budget | None = None) -> object:
    return run(window(data).stream(), Report(), budget or Budget())


def plain(symbol: object) -> object:
    """A symbol of plain values as the values."""
    if isinstance(symbol, Dict):
        return [(plain(key), plain(value)) for key, value in symbol.pairs]
    if isinstance(symbol, list):
        return [plain(each) for each in symbol]
    return tuple(plain(each) for each in symbol) if isinstance(symbol, tuple) else symbol


def as_pairs(value: object) -> object:
    """The same for a value: dictionaries as lists of pairs."""
    if isinstance(value, dict):
        return [(as_pairs(key), as_pairs(each)) for key, each in value.items()]
    if isinstance(value, list):
        return [as_pairs(each) for each in value]
    return tuple(as_pairs(each) for each in value) if isinstance(value, tuple) else value


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.integers(-(2**400), 2**400)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner)
    ),
)


@given(VALUES, st.integers(0, 5))
def test_plain_values_come_out_as_they_were(value: object, protocol: int) -> None:
    assert plain(outcome(pickle.dumps(value, protocol))) == as_pairs(value)


@given(st.binary(max_size=300), st.integers(3, 5))
def test_bytes_come_out_as_they_were(value: bytes, protocol: int) -> None:
    assert outcome(pickle.dumps(value, protocol)) == value


def test_values_that_are_met_twice_are_one() -> None:
    shared: list[object] = []
    assert plain(outcome(pickle.dumps([shared, shared, {"a": shared}]))) == [[], [], [("a", [])]]


def test_a_value_that_holds_itself_is_no_trouble() -> None:
    loop: list[object] = []
    loop.append(loop)
    made = outcome(pickle.dumps(loop))
    assert isinstance(made, list)
    assert made[0] is made


def test_ordered_and_default_dictionaries_are_dictionaries() -> None:
    for value in (OrderedDict(a=1), defaultdict(int, a=1)):
        for protocol in range(2, 6):
            assert plain(outcome(pickle.dumps(value, protocol))) == [("a", 1)]


def test_an_object_is_its_class_and_its_state() -> None:
    made = outcome(pickled(name("some.module", "Class") + b")\x81}" + text("x") + b"K\x01sb"))
    assert isinstance(made, Made)
    assert made.maker == Global("some.module", "Class")
    assert made.attributes() == {"x": 1}


def test_names_of_python_2_are_those_of_python_3() -> None:
    assert outcome(pickled(name("__builtin__", "unicode"))) == Global("builtins", "str")
    assert outcome(pickled(name("cPickle", "loads"))) == Global("pickle", "loads")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02T\xff\xff\xff\xff.",
        b"\x80\x020.",
        b"\x80\x02\x85.",
        b"\x80\x02s.",
        b"\x80\x02h\x07.",
        b"\x80\x02t.",
        b"\x80\x02(K\x01d.",
        b"\x80\x02.",
        b"\x80\x02\xfe.",
        b"S'a\n.",
        b"cos\n",
        b"Iabc\n.",
        b"g-1\n.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b".",
    ],
)
def test_what_breaks_off_is_no_value(data: bytes) -> None:
    with pytest.raises((Unreadable, *BROKEN)):
        outcome(data)


def test_only_where_every_unpickler_stops_it_says_no_pickle() -> None:
    for data in (b"", b"\xfe", b"}\xfe"):
        with pytest.raises(NoPickle):
            outcome(data)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        outcome(b"I0x10\n.")  # C reads this, we do not
    assert not isinstance(caught.value, NoPickle)


def test_a_long_value_is_passed_over() -> None:
    long = b"B" + struct.pack("<I", 2 << 20) + bytes(2 << 20)
    assert outcome(pickled(long + b"K\x07\x86", 4)) == (Opaque.SKIPPED, 7)


def test_a_long_name_is_no_name() -> None:
    report = Report()
    module = b"X" + struct.pack("<I", 5000) + b"o" * 5000
    run(window(pickled(module + text("system") + b"\x93", 4)).stream(), report, Budget())
    assert report.oddities


def test_opcodes_are_counted() -> None:
    with pytest.raises(TooMuch):
        outcome(b"\x80\x02" + b"}0" * 20 + b"N.", Budget(30))


def test_text_is_counted() -> None:
    with pytest.raises(TooMuch, match="text"):
        outcome(b"\x80\x02" + (b"T" + struct.pack("<i", 4096) + bytes(4096) + b"0") * (16 * 1024 + 1) + b"N.")


def test_a_mutilated_pickle_raises_nothing_strange() -> None:
    value = pickle.dumps({"a": [1, 2.5, (3, "x" * 20)], "b": OrderedDict(c=math.pi)}, 2) + EVIL
    chosen = random.Random(1)
    for _ in range(3000):
        data = bytearray(value)
        for _ in range(chosen.randint(1, 4)):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
        try:
            run(io.BufferedReader(io.BytesIO(data)), Report(), Budget(10_000))
        except (Unreadable, *BROKEN):
            continue
