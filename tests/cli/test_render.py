from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fuse_ckpt.cli import render

HEADERS = ["ID", "NAME", "TRAIN LOSS"]
ID = "0197f6a2-0000-7000-8000-0123456789ab"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_for_a_pipe_is_a_title_a_header_and_one_line_per_row() -> None:
    assert render.plain_table("A Title", HEADERS, [[ID, "ckpt.pt", "0.5"], [ID, "a", ""]]) == (
        "A Title\n"
        "ID                                   │ NAME    │ TRAIN LOSS\n"
        f"{ID} │ ckpt.pt │ 0.5\n"
        f"{ID} │ a       │\n"
    )


def test_a_table_without_rows_is_its_header_alone() -> None:
    assert render.plain_table("A Title", HEADERS, []) == "A Title\nID │ NAME │ TRAIN LOSS\n"


def test_wide_characters_keep_the_columns_straight() -> None:
    lines = render.plain_table("T", ["A", "B"], [["模型", "x"], ["abcd", "y"]]).splitlines()
    assert lines[2:] == ["模型 │ x", "abcd │ y"]


def drawn(columns: int, rows: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    render.show_table("T", HEADERS, rows, colour=True, stream=stream)
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [64, 80, 200])
def test_a_terminal_folds_long_cells_and_never_an_id(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(columns, [[ID, "a-rather-long-name/" * 6, "0.5"]], monkeypatch)
    assert max(map(len, lines)) <= columns
    body = lines[1 + next(i for i, line in enumerate(lines) if "┼" in line) :]
    assert body[0].startswith(f"{ID} │ ")
    assert "".join(line.split("│")[1].strip() for line in body) == "a-rather-long-name/" * 6


@pytest.mark.parametrize("columns", [10, 40])
def test_a_narrow_terminal_gets_a_block_per_row(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(columns, [[ID, "checkpoint-100", "0.5"], [ID, "", ""]], monkeypatch)
    assert [line for line in lines if ID in line] == [ID, ID]
    assert "NAME checkpoint-100" in " ".join(lines)
    assert "TRAIN LOSS 0.5" in " ".join(lines)


def test_a_terminal_that_wants_no_colour_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured, plain = Terminal(), Terminal()
    render.show_table("T", HEADERS, [], colour=True, stream=coloured)
    render.show_table("T", HEADERS, [], colour=False, stream=plain)
    assert "\x1b[" in coloured.getvalue()
    assert "\x1b" not in plain.getvalue()


def test_text_that_looks_like_markup_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    render.show_table("T", ["A", "B"], [["[bold]x[/bold]", ":smile:"]], colour=False, stream=stream)
    assert "[bold]x[/bold]" in stream.getvalue()
    assert ":smile:" in stream.getvalue()


def test_json_of_an_undecodable_name_is_ascii_and_comes_back() -> None:
    name = b"caf\xe9\x1b\xff".decode(errors="surrogateescape")
    text = render.to_json([{"name": name}])
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text) == [{"name": name}]


@pytest.mark.parametrize(
    "document",
    [
        {"a": {"b": [1, 2.5, None, True], "c": []}, "d": {}, "e": [[1, [2]], {"x": {"y": "z"}, "w": 1}]},
        {
            "text": [
                "",
                " ",
                "no",
                "Yes",
                "null",
                "~",
                "1",
                "0x1f",
                "1e5",
                "1_000",
                "12:30:45",
                "2025-06-05",
                ".5",
                "-",
                "---",
            ]
        },
        {
            "text": [
                "a: b",
                "a #b",
                "#",
                "*x",
                "&x",
                "!x",
                "@x",
                "%x",
                "- x",
                "? x",
                "[x",
                "{x",
                "x]",
                "a, b",
                "'",
                '"',
                "\\",
            ]
        },
        {
            "text": [
                "725 bytes",
                "2.1 GB",
                "ckpt-5/model.pt",
                ID,
                "a\nb",
                "\t",
                "ü 模型",
                "\x1b[31m",
                "\u2028",
                "trailing ",
            ]
        },
        {"digest": ["1234567890" * 6 + "1234", "123e4567" * 8, "e" * 64, "0b101", "0o17"]},
        {"numbers": [0, -1, 1e-5, 1.5e300, 0.1, 2.0, 1e22, 10**40]},
    ],
)
def test_yaml_reads_back_as_what_was_written(document: Any) -> None:
    assert yaml.safe_load(render.to_yaml(document)) == document


def test_yaml_shows_nothing_that_a_terminal_could_act_on() -> None:
    text = render.to_yaml({"name": "a\x1b]0;title\x07\x9b2J\udce9\u202e"})
    assert text == r'name: "a\x1b]0;title\x07\x9b2J\udce9\u202e"'


def test_common_values_are_written_bare() -> None:
    document = {"kind": "checkpoint", "size": "10 MB", "id": ID, "path": "model-00001-of-00002.safetensors"}
    assert render.to_yaml(document).splitlines() == [f"{key}: {value}" for key, value in document.items()]


def test_there_is_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with render.progress_bar("fetch", colour=True) as progress:
        assert progress is None
    assert capsys.readouterr() == ("", "")
