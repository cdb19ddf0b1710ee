"""--unit and --quiet-period as they are typed."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Program


@pytest.mark.parametrize("command", [["mount", "job", "/tmp"], ["training", "run", "job"]], ids=["mount", "run"])
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--unit", ""], "fits nothing"),
        (["--unit", "/"], "fits nothing"),
        (["--unit", "../other"], "fits nothing"),
        (["--unit", "a/./b"], "fits nothing"),
        (["--quiet-period", "-1"], "range"),
        (["--quiet-period", "nan"], "nan"),
        (["--quiet-period", "inf"], "range"),
        (["--quiet-period", "soon"], "soon"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_can_fit_nothing_is_refused_before_anything_is_made(
    program: Program, command: list[str], arguments: list[str], word: str
) -> None:
    said = program(*command, *arguments, *(["--", "true"] if command[0] == "training" else []))
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert word in said.err


def test_the_help_says_what_fits(program: Program) -> None:
    for command in (["mount"], ["training", "run"]):
        said = " ".join(program(*command, "--help").out.split())
        assert "a directory with all that is below it" in said
        assert "after S seconds without a change" in said
