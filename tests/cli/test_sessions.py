"""The commands that mount, on a session that only notes what it was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fuse_ckpt import session
from fuse_ckpt.errors import InvalidMountPoint, JobExists, MountFailed, StillBound
from fuse_ckpt.model import Run, RunStatus

RUN = Run("run-1", "digits", ("train",), 0, RunStatus.SUCCEEDED)


@dataclass
class FakeSession:
    """What session was told; `error` is raised where one is set, before anything starts."""

    options: Any = None
    command: Any = None
    more: Any = None
    error: Exception | None = None
    exit_code: int = 0
    problems: tuple[str, ...] = ()

    def run_training(self, options: Any, command: Any, **more: Any) -> Any:
        self.options, self.command, self.more = options, list(command), more
        if self.error is not None:
            raise self.error
        more["report"]("mounted at /m\x1b")
        return SimpleNamespace(
            exit_code=self.exit_code, run=RUN, mountpoint=Path("/m"), drained=True, problems=self.problems
        )

    def mount(self, options: Any, *, foreground: bool, ready: Any) -> Any:
        self.options, self.more = options, foreground
        if self.error is not None:
            raise self.error
        mounted = SimpleNamespace(mountpoint=options.mountpoint, pid=1, data_path="daemon", reason="")
        ready(mounted)
        return mounted

    def browse(self, store_path: Path, mountpoint: Path, *, foreground: bool, ready: Any) -> None:
        self.options, self.more = (store_path, mountpoint), foreground
        ready(SimpleNamespace(mountpoint=mountpoint))

    def umount(self, mountpoint: Path) -> None:
        self.options = mountpoint
        if self.error is not None:
            raise self.error


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    for name in ("run_training", "mount", "browse", "umount"):
        monkeypatch.setattr(session, name, getattr(fake, name))
    return fake


def test_a_run_passes_the_command_on_untouched(program: Any, fake: FakeSession, shelf: Any) -> None:
    command = ["python", "train.py", "--lr", "3", "-C", "x", "--", "--help"]
    result = program(
        *("training", "run", "digits", "-C", "digits:latest", "--if-any", "--restart", "--node", "2"),
        *("--env", "A=1=2", "--env", "B=", "--unit", "*.x", "--unit", "*.y", "--quiet-period", "1.5", "--", *command),
    )
    assert result.code == 0
    assert fake.command == command
    assert (fake.options.store, fake.options.job, fake.options.node) == (shelf.root, "digits", "2")
    assert (fake.options.units, fake.options.quiet_period) == (("*.x", "*.y"), 1.5)
    assert fake.more["checkpoint"] == "digits:latest"
    assert (fake.more["if_any"], fake.more["force"], fake.more["restart"]) == (True, False, True)
    assert (fake.more["environment"]["A"], fake.more["environment"]["B"]) == ("1=2", "")
    assert fake.more["environment"]["FUSE_CKPT_STORE"] == str(shelf.root)


def test_standard_output_belongs_to_the_command(program: Any, fake: FakeSession, shelf: Any) -> None:
    shelf.put("before.pt")
    mine = shelf.put("mine.pt", run=RUN.id)
    fake.problems = ("a problem",)
    result = program("training", "run", "digits", "--", "train")
    assert result.out == ""
    lines = result.err.splitlines()
    assert lines[:3] == [
        "fuse-ckpt: mounted at /m\\x1b",
        "fuse-ckpt: a problem",
        "List of Checkpoints for a Training Job",
    ]
    assert [line.split(" │ ")[0] for line in lines[4:]] == [mine.id]


def test_a_run_that_saved_nothing_says_where_it_should_have(program: Any, fake: FakeSession) -> None:
    result = program("training", "run", "digits", "--", "train")
    assert "$FLEXAI_OUTPUT_CHECKPOINT_DIR (/m)" in result.err


def test_a_run_exits_as_its_command_did(program: Any, fake: FakeSession) -> None:
    fake.exit_code = 137
    assert program("training", "run", "digits", "--", "train").code == 137


@pytest.mark.parametrize("error", [JobExists("digits"), MountFailed("no /dev/fuse: modprobe fuse")])
def test_a_run_that_never_began_exits_with_125(program: Any, fake: FakeSession, error: Exception) -> None:
    fake.error = error
    result = program("training", "run", "digits", "--", "train")
    assert (result.code, result.err) == (125, f"{error}\n")


def test_a_disk_that_is_full_before_the_command_begins_exits_with_125(program: Any, fake: FakeSession) -> None:
    fake.error = OSError(28, "No space left on device", "/store/jobs")
    result = program("training", "run", "digits", "--", "train")
    assert (result.code, result.err) == (125, "/store/jobs: No space left on device\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("digits",),
        ("digits", "--"),
        ("digits", "python", "train.py"),
        ("digits", "python", "train.py", "--lr", "3"),
        ("digits", "extra", "--", "train"),
        ("--", "train"),
        ("a/b", "--", "train"),
        ("", "--", "train"),
        ("x" * 300, "--", "train"),
        ("digits", "--if-any", "--", "train"),
        ("digits", "--env", "novalue", "--", "train"),
        ("digits", "--quiet-period", "-1", "--", "train"),
    ],
)
def test_a_run_that_makes_no_sense_is_a_usage_error_of_one_line(
    program: Any, fake: FakeSession, arguments: tuple[str, ...]
) -> None:
    result = program("training", "run", *arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert fake.command is None


def test_a_command_without_dashes_is_told_where_it_belongs(program: Any, fake: FakeSession) -> None:
    assert "write it after --" in program("training", "run", "digits", "python", "train.py", "--lr", "3").err


def test_flags_of_the_platform_are_accepted_with_one_line(program: Any, fake: FakeSession) -> None:
    result = program(
        *("training", "run", "digits", "-u", "https://example.org/x", "-b", "main", "-D", "a", "-D", "b=c", "-a", "8"),
        *("-n", "2", "-S", "TOKEN=t", "--affinity", "cluster=k", "--runtime", "r", "-q", "r.txt", "-d", "nvidia"),
        *("--no-queue", "--build-secret", "x", "--", "train"),
    )
    assert result.code == 0
    lines = [line for line in result.err.splitlines() if "--repository-url" in line]
    assert len(lines) == 1
    assert lines[0].count("--dataset") == 1
    assert "--no-queue" in lines[0]
    assert "--dataset" not in program("training", "run", "digits", "--", "train").err


def test_a_place_that_the_environment_names_is_where_it_mounts(
    program: Any, fake: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("training", "run", "digits", "--", "train")
    assert fake.options.mountpoint is None
    monkeypatch.setenv("FLEXAI_OUTPUT_CHECKPOINT_DIR", "/output-checkpoint")
    program("training", "run", "digits", "--", "train")
    assert fake.options.mountpoint == Path("/output-checkpoint")


def test_mount_prints_lines_that_a_shell_can_evaluate(program: Any, fake: FakeSession, shelf: Any) -> None:
    found = shelf.put()
    result = program("mount", "next", "/mnt/my runs", "--input", "digits/ckpt.pt")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "export FLEXAI_OUTPUT_CHECKPOINT_DIR='/mnt/my runs'"
    assert lines[1] == f"export FLEXAI_INPUT_CHECKPOINT_DIR='/mnt/my runs/.checkpoints/by-id/{found.id}'"
    assert lines[2].startswith("# ")
    assert "/mnt/my runs/.checkpoints" in lines[2]
    assert (fake.options.parent, fake.options.mountpoint, fake.more) == (found.id, Path("/mnt/my runs"), False)


def test_mount_without_input_sets_the_output_alone(program: Any, fake: FakeSession) -> None:
    lines = program("mount", "next", "/m").out.splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["export FLEXAI_OUTPUT_CHECKPOINT_DIR=/m"]
    assert any("export FLEXAI_INPUT_CHECKPOINT_DIR=/m/.checkpoints/latest" in line for line in lines)


def test_a_mount_point_below_here_is_made_absolute(
    program: Any, fake: FakeSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (("mount", "job"), ("browse",), ("umount",)):
        assert program(*command, "m").code == 0
    assert fake.options == tmp_path / "m"


@pytest.mark.parametrize("job", ["a/b", "", "x" * 300, "-x"])
def test_a_bad_job_name_is_a_usage_error(program: Any, fake: FakeSession, job: str) -> None:
    result = program("mount", "--", job, "/m")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert fake.options is None


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidMountPoint("/m is not empty"), 2), (MountFailed("no /dev/fuse"), 1), (StillBound("/m is still bound"), 5)],
)
def test_what_mount_and_umount_raise_is_one_line(program: Any, fake: FakeSession, error: Exception, code: int) -> None:
    fake.error = error
    for command in (("mount", "job", "/m"), ("umount", "/m")):
        result = program(*command)
        assert (result.code, result.out, result.err) == (code, "", f"{error}\n")


def test_browse_shows_the_whole_store(program: Any, fake: FakeSession, shelf: Any) -> None:
    result = program("browse", "/b")
    assert (result.code, fake.options, fake.more) == (0, (shelf.root, Path("/b")), False)
    assert "/b" in result.out


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (None, 0), (False, 1)])
def test_doctor_exits_with_1_where_something_is_missing(
    program: Any, monkeypatch: pytest.MonkeyPatch, ok: bool | None, code: int
) -> None:
    finding = SimpleNamespace(ok=ok, what="/dev/fuse", remedy="modprobe fuse")
    monkeypatch.setattr(session, "probe", lambda path: [finding])
    result = program("doctor")
    assert result.code == code
    assert "/dev/fuse" in result.out
    assert ("modprobe fuse" in result.out) == (ok is not True)
