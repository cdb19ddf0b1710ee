from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fuse_ckpt.cli import access, app, examples

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "fuse_ckpt")
HEAVY = ("rich", "trio", "pyfuse3", "obstore", "torch", "transformers")


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


OWN_EXIT_CODES: dict[tuple[str, ...], str] = {
    ("training", "run"): "Exit codes: COMMAND's own; 128 + n where signal n killed it; 126",
    ("checkpoint", "show"): "Exit codes: 0 done, 1 a file asks for more memory or time than is given, 2 usage, 3 not",
    ("checkpoint", "diff"): "Exit codes: 0 done, 1 a file asks for more memory or time than is given, 2 usage, 3 not",
    ("checkpoint", "scan"): "Exit codes: 0 safe",
    ("checkpoint", "verify"): "Exit codes: 0 all is well, 1 failed, 2 usage, 3 not found, 4 corrupt",
}


@pytest.mark.parametrize("path", list(commands(app.program)), ids=" ".join)
def test_every_help_tells_the_exit_codes(program: Any, path: tuple[str, ...]) -> None:
    result = program(*path, "--help")
    assert (result.code, result.err) == (0, "")
    said = " ".join(result.out.split())
    assert OWN_EXIT_CODES.get(path, "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 corrupt, 5 busy") in said


@pytest.mark.parametrize("path", list(commands(app.program)), ids=" ".join)
def test_the_help_of_every_command_shows_its_use(program: Any, path: tuple[str, ...]) -> None:
    command: Any = app.program
    for word in path:
        command = command.commands[word]
    out = program(*path, "--help").out
    if isinstance(command, click.Group):
        assert "Commands:" in out
    else:
        assert "Example" in out
        shown = [line.strip() for line in out.splitlines() if line.startswith("    ") and "fuse-ckpt" in line]
        assert any(f"fuse-ckpt {' '.join(path)}" in line for line in shown), shown


@pytest.mark.parametrize("path", list(commands(app.program)), ids=" ".join)
def test_the_help_shows_its_use_once(program: Any, path: tuple[str, ...]) -> None:
    text, shown, _ = program(*path, "--help").out.partition("Options:")
    calls = [line for line in text.splitlines()[1:] if line.strip().startswith("fuse-ckpt ")]
    assert (calls, bool(shown)) == ([], True)


@pytest.mark.parametrize("words", sorted(examples.EXAMPLES))
def test_every_example_is_understood(words: str) -> None:
    """Its options and arguments are parsed, nothing is run."""
    for line, _ in examples.EXAMPLES[words]:
        inner = re.sub(r"""^eval "\$\((.*?)\)".*""", r"\1", line)
        parts = shlex.split(re.split(r" \| | && | > ~", inner)[0])
        assert parts[0] == "fuse-ckpt"
        command: click.Command = app.program
        arguments = parts[1:]
        while isinstance(command, click.Group):
            command, arguments = command.commands[arguments[0]], arguments[1:]
        command.make_context(words, arguments)


def test_the_help_shows_what_is_built_and_nothing_else() -> None:
    assert {" ".join(path) for path in commands(app.program)} == {
        "",
        "training",
        "training run",
        "training delete",
        "training fetch",
        "training checkpoints",
        "training list",
        "training inspect",
        "checkpoint",
        "checkpoint list",
        "checkpoint inspect",
        "checkpoint fetch",
        "checkpoint pull",
        "checkpoint export",
        "checkpoint push",
        "checkpoint delete",
        "checkpoint restore",
        "checkpoint tag",
        "checkpoint untag",
        "checkpoint pin",
        "checkpoint unpin",
        "checkpoint gc",
        "checkpoint show",
        "checkpoint diff",
        "checkpoint scan",
        "checkpoint verify",
        "checkpoint wait",
        "checkpoint watch",
        "checkpoint lineage",
        "checkpoint plot",
        "storage",
        "storage create",
        "storage list",
        "storage probe",
        "storage attach",
        "storage detach",
        "storage sync",
        "storage delete",
        "catalog",
        "catalog sync",
        "checkpoint commit",
        "checkpoint promote",
        "mount",
        "umount",
        "browse",
        "stats",
        "doctor",
        "index",
        "index rebuild",
        "completion",
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


def test_it_runs_with_a_click_whose_parameters_are_not_generic() -> None:
    code = "import click; click.ParamType.__class_getitem__ = None; from fuse_ckpt.cli import main; main(['--help'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("checkpoint", "fetch", "digits:latest", "--force", "--destination", ""),
        ("checkpoint", "push", "mine", "--file", ""),
        ("training", "fetch", "digits", "--destination", ""),
        ("mount", "digits", ""),
        ("browse", ""),
        ("umount", ""),
        ("storage", "create", "disk", "--provider", "file", "--root", ""),
        ("--store", "", "checkpoint", "list"),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_directory(
    program: Any, shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    shelf.put()
    (tmp_path / "here").mkdir()
    (tmp_path / "here/ckpt.pt").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path / "here")
    result = program(*arguments)
    assert (result.code, result.out, "it is empty: give a path" in result.err) == (2, "", True)
    assert (tmp_path / "here/ckpt.pt").read_bytes() == b"mine"


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


LOADED = """
import os, signal, sys

class Impatient:
    def find_spec(self, name, path, target=None):
        if name == "fuse_ckpt.cli.app":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Impatient())
from fuse_ckpt.cli import main
sys.exit(main(["--help"]))
"""


def test_ctrl_c_while_the_program_is_loaded_is_no_traceback() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


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
