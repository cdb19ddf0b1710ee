from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fuse_ckpt.cli import access, app

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "fuse_ckpt")
HEAVY = ("rich", "trio", "pyfuse3", "torch", "transformers")


def separate(shelf: Any, **environment: str) -> dict[str, Any]:
    """How a process of its own runs on the shelf's store."""
    shelf.close()
    return {
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "FUSE_CKPT_STORE": str(shelf.root), **environment},
        "stderr": subprocess.PIPE,
        "text": True,
        "timeout": 60,
    }


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands(app.program)), ids=" ".join)
def test_every_help_tells_the_exit_codes(program: Any, path: tuple[str, ...]) -> None:
    result = program(*path, "--help")
    assert (result.code, result.err) == (0, "")
    said = " ".join(result.out.split())
    if path == ("training", "run"):
        assert "Exit codes: COMMAND's own; 128 + n where signal n killed it; 126" in said
    else:
        assert "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 corrupt, 5 busy" in said


def test_the_help_shows_what_is_built_and_nothing_else() -> None:
    assert {" ".join(path) for path in commands(app.program)} == {
        "",
        "training",
        "training run",
        "training checkpoints",
        "training list",
        "training inspect",
        "checkpoint",
        "checkpoint list",
        "checkpoint inspect",
        "checkpoint fetch",
        "checkpoint pull",
        "checkpoint delete",
        "mount",
        "umount",
        "browse",
        "stats",
        "doctor",
        "index",
        "index rebuild",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["training", "run", "--help"],
        ["training", "list"],
        ["training", "checkpoints", "digits"],
        ["checkpoint", "list"],
    ],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_heavy(shelf: Any, arguments: list[str]) -> None:
    shelf.put()
    code = (
        "import sys; from fuse_ckpt.cli import main; code = main(sys.argv[1:]); "
        f"print(*(set({HEAVY}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, **separate(shelf))
    assert (done.returncode, done.stderr) == (0, "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("checkpoint", "list", "--no-such-option"),
        ("checkpoint", "list", "--limit", "none"),
        ("checkpoint", "inspect"),
        ("checkpoint", "inspect", "a", "b"),
    ],
)
def test_a_usage_error_is_one_line_that_names_the_help(program: Any, arguments: tuple[str, ...]) -> None:
    result = program(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "--help" in result.err


def test_a_bug_is_one_line_and_a_traceback_where_it_is_asked_for(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the floor\x1b fell")

    monkeypatch.setattr(access, "existing_store", broken)
    result = program("checkpoint", "list")
    assert (result.code, result.out) == (1, "")
    assert (
        result.err == "This is a bug in fuse-ckpt: RuntimeError: the floor\\x1b fell (run with -v for the traceback)\n"
    )
    assert "Traceback" in program("-v", "checkpoint", "list").err


def test_an_error_of_the_system_is_one_line(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/some/where")

    monkeypatch.setattr(access, "existing_store", full)
    result = program("checkpoint", "list")
    assert (result.code, result.err) == (1, "/some/where: No space left on device\n")


def test_ctrl_c_exits_as_a_shell_has_it(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(access, "existing_store", interrupted)
    result = program("checkpoint", "list")
    assert (result.code, result.err.strip()) == (130, "")


def test_a_reader_that_has_gone_is_no_traceback(shelf: Any) -> None:
    shelf.put()
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*PROGRAM, "checkpoint", "list"], stdout=writer, **separate(shelf))
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_locale_without_box_characters_is_no_traceback(shelf: Any) -> None:
    shelf.put("模型.pt")
    how = separate(shelf, PYTHONIOENCODING="ascii")
    done = subprocess.run([*PROGRAM, "checkpoint", "list"], stdout=subprocess.PIPE, **how)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u6a21\u578b.pt" in done.stdout
