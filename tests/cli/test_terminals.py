"""What is drawn on a terminal: narrow ones, those without colours, and one whose window is no window."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from fuse_ckpt.model import Metadata, Provenance, RunStatus, Shape
from tests.cli.background import ROOT
from tests.mount.harness import PROGRAM

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
LONG = "a-rather-long-name-of-a-checkpoint-that-no-narrow-terminal-has-room-for"

COMMANDS = [
    ("checkpoint", "list"),
    ("training", "list"),
    ("training", "checkpoints", "digits", "--wide"),
    ("checkpoint", "lineage", "digits:latest"),
    ("checkpoint", "plot", "digits"),
]


def on_terminal(store: Path, columns: int, *arguments: str, **environment: str) -> str:
    """What the program writes on a terminal of so many columns."""
    controller, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "FUSE_CKPT_STORE")}
    process = subprocess.Popen(
        [*PROGRAM, "--store", str(store), *arguments],
        stdin=end, stdout=end, stderr=end,
        env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(end)
    seen = b""
    try:
        while part := os.read(controller, 65536):
            seen += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(controller)
    assert process.wait(60) == 0, seen
    return seen.decode().replace("\r\n", "\n")


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


@pytest.fixture
def filled(shelf: Any) -> Any:
    shelf.store.ensure_job("digits", 1)
    where = Provenance("a-machine-with-a-long-name", "somebody", "/", "4f2a1b9c" * 5, True)
    run = shelf.store.begin_run("digits", ["python", "train.py", "--option", "x" * 80], 1, provenance=where)
    shelf.store.end_run(run, 2, 0, RunStatus.SUCCEEDED)
    for step in range(1, 9):
        said = Metadata(step, 1 / step, 2 / step, "LlamaForCausalLM", "5.1", resumable=True, weights=True)
        shelf.put(f"{LONG}-{step}", {"a": b"%d" % step}, shape=Shape.DIRECTORY, metadata=said, run=run.id)
    shelf.put("模型" * 20, {"a": b"x"}, run=run.id)
    shelf.close()
    return shelf


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_forty_columns_are_enough_and_no_id_is_cut(filled: Any, command: tuple[str, ...]) -> None:
    text = _STYLE.sub("", on_terminal(filled.root, 40, *command))
    found = filled.store.checkpoints("digits")
    if "checkpoints" in command or (command[0] == "checkpoint" and "list" in command):
        # An id is a line of its own; a name that is longer than a line is the terminal's to wrap.
        assert [line for line in text.splitlines() if re.fullmatch(r"[0-9a-f-]{36}", line)] == [one.id for one in found]
    else:
        assert max(map(width, text.splitlines())) <= 40, text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_without_colours_nothing_is_coloured(filled: Any, command: tuple[str, ...]) -> None:
    text = on_terminal(filled.root, 100, *command, NO_COLOR="1")
    assert "\x1b" not in text


@pytest.mark.parametrize("command", [("checkpoint", "plot", "digits"), ("checkpoint", "lineage", "digits:latest")])
def test_with_colours_something_is(filled: Any, command: tuple[str, ...]) -> None:
    text = on_terminal(filled.root, 100, *command)
    assert "\x1b[" in text
    assert all(line.count("\x1b[0m") <= line.count("\x1b[") for line in text.splitlines())


@pytest.mark.parametrize("columns", [0, 1, 5])
def test_a_window_that_is_none_is_no_error(filled: Any, columns: int) -> None:
    for command in COMMANDS:
        assert on_terminal(filled.root, columns, *command)


def test_the_help_fits_a_narrow_terminal_but_for_what_may_be_copied(filled: Any) -> None:
    text = on_terminal(filled.root, 40, "checkpoint", "watch", "--help")
    before, _, after = text.partition("Examples:")
    # click fills lines to two columns less than it is given, and to 50 at least
    assert max(map(width, before.splitlines())) <= 50
    assert "fuse-ckpt checkpoint watch digits --until-end --exec 'python evaluate.py {path}" in after


def test_long_work_shows_a_bar_on_a_terminal(filled: Any, tmp_path: Path) -> None:
    found = filled.store.latest("digits")
    filled.close()
    text = on_terminal(filled.root, 80, "checkpoint", "fetch", found.id, "--destination", str(tmp_path / "out"))
    assert f"fetch {found.id[-8:]}" in text
    assert "━" in text
    assert "Fetched 1 file" in text.splitlines()[-1]
