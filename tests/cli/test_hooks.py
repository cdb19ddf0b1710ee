from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_ckpt import session
from fuse_ckpt.cli.hooks import Hook, View, shell_script
from fuse_ckpt.errors import CheckpointLeased, MountFailed, UsageError
from fuse_ckpt.model import Checkpoint
from tests.mount.harness import wait_until

HOSTILE = "a b'\"$(touch pwned);`touch pwned`\\ *{id}"


@pytest.mark.parametrize(
    "command",
    [
        "printf '<%s>' {name}",
        "printf '<%s>' \"{name}\"",
        "printf '<%s>' ''{name}\"\"",
        "sh -c 'printf \"<%s>\" {name}'",
        'sh -c \'printf "<%s>" "$1"\' _ {name}',
        "printf '<%s>' \"\\\"\"{name} | sed 's/\"//'",
        "x={name}; printf '<%s>' \"$x\"",
    ],
)
def test_a_name_is_text_wherever_it_stands(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", shell_script(command)],
        env={**os.environ, "FUSE_CKPT_NAME": HOSTILE, "FUSE_CKPT_ID": "I"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"<{HOSTILE}>"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ['sh -c "echo {name}"', 'x | bash -e -c "a \\"{path}\\""', 'eval "echo {id}"'])
def test_a_name_in_a_script_for_another_shell_is_refused(command: str) -> None:
    with pytest.raises(UsageError, match="FUSE_CKPT_NAME"):
        shell_script(command)


def test_what_is_no_placeholder_stays() -> None:
    text = "echo ${name} {other} {} '{' $HOME"
    assert shell_script(text) == text


@pytest.fixture
def said() -> list[str]:
    return []


class Viewed(View):
    """A view without a mount."""

    def path(self, checkpoint: Checkpoint) -> str:
        return f"/view/{checkpoint.id}"


class Hooks:
    """Hooks on the shelf's store, each closed at the end."""

    def __init__(self, shelf: Any, said: list[str], tmp_path: Path) -> None:
        self._shelf = shelf
        self._said = said
        self._made: list[Hook] = []
        self.view = Viewed("", shelf.store, said.append)
        self.out = tmp_path / "said"

    def __call__(self, command: str) -> Hook:
        environment = {**os.environ, "OUT": str(self.out)}
        hook = Hook(command, self._shelf.store, environment, self.view, self._said.append)
        self._made.append(hook)
        return hook

    def close(self) -> None:
        for hook in self._made:
            hook.close()

    @staticmethod
    def finish(hook: Hook) -> None:
        def over() -> bool:
            hook.turn()
            return hook.idle

        wait_until("the command has ended", over)


@pytest.fixture
def hooks(shelf: Any, said: list[str], tmp_path: Path) -> Iterator[Hooks]:
    hooks = Hooks(shelf, said, tmp_path)
    yield hooks
    hooks.close()


def test_commands_run_one_after_the_other_and_know_their_checkpoint(shelf: Any, hooks: Hooks, said: list[str]) -> None:
    made = [shelf.put(name) for name in ("first", "then it's", "-last")]
    hook = hooks('echo "begin {id}" >> "$OUT"; echo {name} >> "$OUT"; echo {path} "$FUSE_CKPT_STORE" >> "$OUT"')
    for one in made:
        hook.add(one)
    hooks.finish(hook)
    assert hooks.out.read_text().splitlines() == [
        line for one in made for line in (f"begin {one.id}", one.name, f"/view/{one.id} {shelf.root}")
    ]
    assert said == []


@pytest.mark.parametrize(("command", "how"), [("exit 3", "ended with 3"), ("kill -9 $$", "was ended by signal 9")])
def test_a_command_that_fails_is_told_and_the_next_one_runs(
    shelf: Any, hooks: Hooks, said: list[str], command: str, how: str
) -> None:
    hook = hooks(command)
    found = shelf.put()
    hook.add(found)
    hook.add(shelf.put("other"))
    hooks.finish(hook)
    assert len(said) == 2
    assert said[0] == f"the command for {found.id} (ckpt.pt) {how}"


def test_a_checkpoint_cannot_be_deleted_while_its_command_runs(shelf: Any, hooks: Hooks, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    found = shelf.put()
    hook = hooks(f"read line < {gate}")
    hook.add(found)
    hook.turn()
    with pytest.raises(CheckpointLeased):
        shelf.store.delete([found.id])
    gate.write_text("go\n")
    hooks.finish(hook)
    shelf.store.delete([found.id])


def test_no_command_runs_for_a_checkpoint_that_was_deleted_while_it_waited(
    shelf: Any, hooks: Hooks, said: list[str]
) -> None:
    found = shelf.put()
    hook = hooks('touch "$OUT"')
    hook.add(found)
    shelf.store.delete([found.id])
    hooks.finish(hook)
    assert said == [f"no command is run for {found.id}: Unknown Checkpoint: {found.id}"]
    assert not hooks.out.exists()


def test_closing_ends_the_command_and_what_it_started(shelf: Any, hooks: Hooks, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    hook = hooks(f'sh -c "echo \\$\\$ > $OUT; read line < {gate}"; true')
    hook.add(shelf.put())
    hook.turn()
    inner = int(wait_until("it runs", lambda: hooks.out.exists() and hooks.out.read_text().strip()))
    hook.close()
    assert hook.idle
    wait_until("it has ended", lambda: not Path(f"/proc/{inner}").exists())


def test_where_nothing_can_be_mounted_the_jobs_own_mount_serves(
    shelf: Any, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise MountFailed("no /dev/fuse")

    monkeypatch.setattr(session, "view", refused)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    found = shelf.put()
    view = View("test {path}", shelf.store, said.append)
    assert said == ["{path} is there only while the job is mounted: no /dev/fuse"]
    assert view.path(found) == ""
    directory = tmp_path / "mounted/.checkpoints/by-id" / found.id
    directory.mkdir(parents=True)
    with shelf.store.lock_job("digits") as lock:
        lock.note(str(tmp_path / "mounted"))
        assert view.path(found) == str(directory)
    assert view.path(found) == ""
    view.close()
