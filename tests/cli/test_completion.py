"""Completion, by a bash that really completes, and by what the other shells are answered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuse_ckpt.model import Shape
from tests.cli.background import ROOT

Complete = Callable[..., list[str]]

# What bash does at TAB, without a terminal: the variables that it sets, then the function that it was told of.
_DRIVER = r"""
eval "$(fuse-ckpt completion bash)"
compopt() { printf 'compopt %s\n' "$*"; }
declare -F _fuse_ckpt_completion >/dev/null || exit 9
complete -p fuse-ckpt | grep -q _fuse_ckpt_completion || exit 9
COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
_fuse_ckpt_completion fuse-ckpt
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def bash(shelf: Any, tmp_path: Path) -> Complete:
    """What bash offers at the end of a line."""
    program = tmp_path / "bin/fuse-ckpt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fuse_ckpt "$@"\n')
    program.chmod(0o755)

    def complete(line: str) -> list[str]:
        shelf.close()
        done = subprocess.run(
            ["bash", "--norc", "-c", _DRIVER, "bash", line],
            env={
                "PATH": f"{program.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "FUSE_CKPT_STORE": str(shelf.root),
                "HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split("\n")[:-1]

    return complete


@pytest.fixture
def filled(shelf: Any) -> Any:
    shelf.put("ckpt.pt")
    shelf.put("ckpt.pt", {"a": b"2"})
    shelf.put("checkpoint-5", {"a": b"3"}, shape=Shape.DIRECTORY)
    shelf.put("with space.pt", job="other")
    return shelf


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fuse-ckpt check", ["checkpoint"]),
        ("fuse-ckpt completion ", ["bash", "zsh", "fish"]),
        ("fuse-ckpt checkpoint list --stat", ["--status"]),
        ("fuse-ckpt checkpoint list --job ", ["digits", "other"]),
        ("fuse-ckpt training inspect d", ["digits"]),
        ("fuse-ckpt checkpoint plot digits o", ["other"]),
        ("fuse-ckpt checkpoint inspect digits:", ["latest", "best"]),
        ("fuse-ckpt checkpoint inspect digits:la", ["latest"]),
        ("fuse-ckpt checkpoint inspect digits/c", ["digits/checkpoint-5", "digits/ckpt.pt"]),
        ("fuse-ckpt checkpoint inspect digits/ckpt.pt@", ["2", "1"]),
        ("fuse-ckpt checkpoint delete digits:best o", ["other:latest", "other:best", r"other/with\ space.pt"]),
        ("fuse-ckpt training run next --checkpoint=digits:l", ["latest"]),
        ("fuse-ckpt training run next -C other/with\\ sp", [r"other/with\ space.pt"]),
        ("fuse-ckpt checkpoint inspect nobody", []),
    ],
)
def test_bash_completes(bash: Complete, line: str, offered: list[str]) -> None:
    assert [one for one in bash(line) if one] == offered


@pytest.mark.usefixtures("filled")
def test_a_reference_is_completed_step_by_step(bash: Complete) -> None:
    offered = bash("fuse-ckpt checkpoint inspect ")
    assert offered == [
        *["compopt -o nospace"] * 2,
        *["digits:latest", "digits:best", "other:latest", "other:best", "digits/", "other/"],
    ]


def test_an_id_is_completed_by_its_beginning(bash: Complete, shelf: Any) -> None:
    found = shelf.put()
    assert bash(f"fuse-ckpt checkpoint inspect {found.id[:6]}") == [found.id]


def test_what_comes_after_the_dashes_is_a_file(bash: Complete) -> None:
    assert bash("fuse-ckpt training run digits -- pyth")[0] == "compopt -o default"
    assert bash("fuse-ckpt training run digits -- ")[0] == "compopt -o default"


@pytest.mark.usefixtures("filled")
def test_the_store_option_on_the_line_is_heeded(bash: Complete, tmp_path: Path, shelf: Any) -> None:
    assert bash(f"fuse-ckpt --store {tmp_path}/none training inspect ") == [""]
    assert bash(f"fuse-ckpt --store {shelf.root} training inspect d") == ["digits"]


def test_a_store_that_cannot_be_read_is_silence(bash: Complete, shelf: Any) -> None:
    shelf.put()
    (shelf.root / "format").write_text("fuse-ckpt store 99\n")
    assert bash("fuse-ckpt training inspect ") == [""]


def test_a_name_that_a_terminal_could_act_on_is_not_offered(bash: Complete, shelf: Any) -> None:
    shelf.put("x\x1b[2J\n")
    shelf.put("$(touch pwned)")
    assert bash("fuse-ckpt checkpoint inspect digits/") == [r"digits/\$\(touch\ pwned\)"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(program: Any, shell: str) -> None:
    result = program("completion", shell)
    assert (result.code, result.err) == (0, "")
    assert f"_FUSE_CKPT_COMPLETE={shell}_complete" in result.out


def test_an_unknown_shell_is_a_usage_error(program: Any) -> None:
    result = program("completion", "tcsh")
    assert (result.code, result.err.count("\n")) == (2, 1)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("shell", "word"), [("zsh", "3"), ("fish", "digits:l")])
def test_zsh_and_fish_are_answered(shelf: Any, shell: str, word: str) -> None:
    shelf.close()
    done = subprocess.run(
        [sys.executable, "-m", "fuse_ckpt"],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FUSE_CKPT_STORE": str(shelf.root),
            "_FUSE_CKPT_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": "fuse-ckpt checkpoint inspect digits:l",
            "COMP_CWORD": word,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "digits:latest" in done.stdout


def test_completing_imports_nothing_heavy(shelf: Any) -> None:
    shelf.put()
    shelf.close()
    code = (
        "import atexit, sys; from fuse_ckpt.cli import main\n"
        "atexit.register(lambda: print(*{'rich', 'trio', 'pyfuse3', 'numpy'} & set(sys.modules), file=sys.stderr))\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FUSE_CKPT_STORE": str(shelf.root),
            "_FUSE_CKPT_COMPLETE": "bash_complete",
            "COMP_LINE": "fuse-ckpt checkpoint inspect digits/",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("plain,digits/ckpt.pt\n", "\n")
