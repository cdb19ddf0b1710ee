"""docs/semantics.md names a test for each promise, and the tests that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "semantics.md").read_text()
PROMISES = re.split(r"^\*\*(?=S\d)", TEXT.partition("\n## Not yet promised")[0], flags=re.M)[1:]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
NAMED = TEST.findall(TEXT)


def test_there_are_27_promises_in_order() -> None:
    assert [re.findall(r"S\d+", promise)[0] for promise in PROMISES] == [f"S{number}" for number in range(1, 28)]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.split()[0].strip("*"))
def test_each_promise_names_a_test_that_quotes_it(promise: str) -> None:
    number = promise.split()[0].strip("*")
    quoting = [test for path, test in TEST.findall(promise) if quotes(path, test, number)]
    assert quoting


@pytest.mark.parametrize(("path", "test"), NAMED, ids=[test for _, test in NAMED])
def test_each_test_that_is_named_exists(path: str, test: str) -> None:
    assert f"\ndef {test}(" in (ROOT / path).read_text()


def quotes(path: str, test: str, number: str) -> bool:
    body = (ROOT / path).read_text().partition(f"\ndef {test}(")[2]
    docstring = body.partition('"""')[2].partition('"""')[0]
    return re.search(rf"\b{number}\b", docstring.partition(":")[0]) is not None
