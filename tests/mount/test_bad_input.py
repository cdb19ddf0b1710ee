"""What cannot be done is said in one line, with its exit code, and everything is as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.mountpoints import is_mounted
from tests.conftest import MountJob
from tests.mount.containers import NO_DEVICE, NO_PRIVILEGE
from tests.mount.harness import PROGRAM
from tests.mount.runs import OUTPUT, Desk, listing, one_line

pytestmark = pytest.mark.mount

Refuses = Callable[..., str]


@pytest.fixture
def refuses(seeded: Desk) -> Refuses:
    """Run a command that must fail with this code, in one line, and change nothing; returns the line."""

    def check(code: int, *arguments: str, before: tuple[str, ...] = (), env: dict[str, str] | None = None) -> str:
        was = listing(seeded.store)
        line = [*before, *PROGRAM, "--store", str(seeded.store), *arguments]
        done = subprocess.run(
            line, env=seeded.environment(**(env or {})), capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert one_line(done.stderr), done.stderr
        assert listing(seeded.store) == was
        assert seeded.mounts() == []
        return done.stderr

    return check


# -- the mount point --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["mount", "browse"])
def test_a_mount_point_must_be_an_empty_directory(refuses: Refuses, place: Path, command: str) -> None:
    job = ["new"] if command == "mount" else []
    assert "does not exist" in refuses(2, command, *job, str(place / "missing"))
    (place / "file").write_text("mine")
    assert "not empty" in refuses(2, command, *job, str(place))
    assert "not a directory" in refuses(2, command, *job, str(place / "file"))
    assert "not a directory" in refuses(2, command, *job, str(place / "file"), "--foreground")
    assert (place / "file").read_text() == "mine"


def test_a_run_that_cannot_be_mounted_where_the_variable_says_makes_no_job(refuses: Refuses, place: Path) -> None:
    assert "does not exist" in refuses(2, "training", "run", "new", "--", "true", env={OUTPUT: str(place / "missing")})
    (place / "file").touch()
    assert "not empty" in refuses(2, "training", "run", "new", "--", "true", env={OUTPUT: str(place)})


def test_a_directory_that_is_mounted_already_is_refused_and_goes_on(mount_job: MountJob, place: Path) -> None:
    first = mount_job("first")
    (first.path / "m.bin").write_bytes(b"weights")
    said = first.cli("mount", "second", str(first.path))
    assert (said.returncode, one_line(said.stderr)) == (2, True), said.stderr
    assert "already mounted" in said.stderr
    assert (first.path / "m.bin").read_bytes() == b"weights"
    assert first.cli("training", "checkpoints", "second").returncode == 3


def test_a_second_mount_of_a_job_is_busy_and_names_the_place(mount_job: MountJob, place: Path) -> None:
    first = mount_job("job")
    said = first.cli("mount", "job", str(place))
    assert (said.returncode, one_line(said.stderr)) == (5, True), said.stderr
    assert str(first.path) in said.stderr
    run = first.cli("training", "run", "job", "--restart", "--", "true")
    assert (run.returncode, one_line(run.stderr)) == (125, True), run.stderr
    assert str(first.path) in run.stderr
    (first.path / "m.bin").write_bytes(b"weights")
    assert not is_mounted(place)


@pytest.mark.parametrize("foreground", [True, False])
def test_a_stale_mount_point_is_mounted_again(mount_job: MountJob, foreground: bool) -> None:
    mounted = mount_job("job")
    (mounted.path / "m.bin").write_bytes(b"weights")
    mounted.wait_for("m.bin")
    mounted.kill(clear=False)
    assert is_mounted(mounted.path)
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(mounted.path)
    if foreground:
        mounted.mount()
        assert os.listdir(mounted.path) == ["m.bin"]
        return
    said = mounted.cli("mount", "job", str(mounted.path))
    assert said.returncode == 0, said.stderr
    assert os.listdir(mounted.path) == ["m.bin"]
    assert mounted.cli("umount", str(mounted.path)).returncode == 0


def test_what_is_not_ours_is_not_unmounted(refuses: Refuses, place: Path) -> None:
    for other in (place, place / "missing", Path("/proc")):
        assert "not a mount of fuse-ckpt" in refuses(2, "umount", str(other))
    assert os.path.ismount("/proc")


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b", "../up", "", "x" * 300, ".", "..", "a\nb", "a\x1b[31mb", "a:latest"])
def test_a_job_name_that_no_directory_can_have_is_refused(refuses: Refuses, place: Path, name: str) -> None:
    assert "ob name" in refuses(2, "mount", name, str(place))
    assert "ob name" in refuses(2, "training", "run", name, "--", "true")


def test_an_unknown_job_says_so(refuses: Refuses) -> None:
    for command in ("checkpoints", "inspect"):
        assert refuses(3, "training", command, "nobody").endswith('{"code":"ET0002"}\n')


def test_an_unknown_reference_says_so_in_the_same_words_everywhere(refuses: Refuses, seeded: Desk, place: Path) -> None:
    destination = place / "fetched"
    for reference in ("kept/other", "kept:best", "kept/a.bin@2", "nobody:latest", "0" * 32, "no such"):
        for command in (
            ["checkpoint", "inspect", reference],
            ["checkpoint", "fetch", reference, "--destination", str(destination)],
            ["checkpoint", "delete", reference, "--yes"],
            ["mount", "new", str(place), "--input", reference],
        ):
            assert refuses(3, *command) == f"Unknown Checkpoint: {reference}\n"
        assert refuses(125, "training", "run", "new", "-C", reference, "--", "true").startswith("Unknown Checkpoint: ")
    assert not destination.exists()
    known = seeded.listed("kept")[0]["id"]
    refuses(3, "checkpoint", "delete", known, "kept/other", "--yes")


def test_an_ambiguous_reference_lists_the_candidates(refuses: Refuses, seeded: Desk, place: Path) -> None:
    ids = [one["id"] for one in seeded.listed("kept")]
    shared = ids[0][:6]  # of the time of their making
    assert ids[1].startswith(shared)
    for command in (
        ["checkpoint", "inspect", shared],
        ["checkpoint", "delete", shared, "--yes"],
        ["mount", "new", str(place), "--input", shared],
        ["training", "run", "new", "-C", shared, "--", "true"],
    ):
        assert all(one in refuses(2, *command) for one in ids)


def test_a_command_that_is_not_there_makes_not_even_a_store(desk: Desk) -> None:
    done = desk.run("new", command=["no-such-command"])
    assert (done.returncode, one_line(done.stderr)) == (127, True), done.stderr
    if desk.store.exists():
        assert desk.cli("training", "list", "--json").stdout.strip() == "[]"


# -- the machine ------------------------------------------------------------------------------------------------------

_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make what it refuses")


@_ROOT
def test_a_store_of_another_user_is_refused(refuses: Refuses, seeded: Desk, place: Path) -> None:
    os.chown(seeded.store, 65534, 65534)
    try:
        for command in (["checkpoint", "list"], ["training", "checkpoints", "kept"], ["mount", "new", str(place)]):
            assert "belongs to" in refuses(1, *command)
        assert "belongs to" in refuses(125, "training", "run", "new", "--", "true")
    finally:
        os.chown(seeded.store, 0, 0)
    assert len(seeded.listed("kept")) == 2


@_ROOT
def test_without_the_device_it_says_how_to_get_it(refuses: Refuses, place: Path) -> None:
    for code, command in (
        (1, ["mount", "new", str(place)]),
        (1, ["mount", "new", str(place), "--foreground"]),
        (1, ["browse", str(place)]),
        (125, ["training", "run", "new", "--", "true"]),
    ):
        said = refuses(code, *command, before=NO_DEVICE)
        assert "/dev/fuse" in said
        assert "modprobe fuse" in said
    said = refuses(125, "training", "run", "kept", "--restart", "--", "true", before=NO_DEVICE)
    assert "--device" in said


@_ROOT
def test_without_privilege_and_fusermount3_it_says_what_to_install(refuses: Refuses, place: Path) -> None:
    environment = {"PATH": str(place)}
    said = refuses(1, "mount", "new", str(place), before=NO_PRIVILEGE, env=environment)
    assert "fuse3" in said
    assert "SYS_ADMIN" in said
    assert "fuse3" in refuses(125, "training", "run", "new", "--", PROGRAM[0], before=NO_PRIVILEGE, env=environment)
