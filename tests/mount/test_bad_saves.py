"""What programs do to a working tree that nobody would have them do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MountJob
from tests.mount.harness import Mount, walk_files
from tests.semantics.parity import put
from tests.staging.trainer import torch_zip

pytestmark = pytest.mark.mount


def contents(mounted: Mount, name: str) -> list[dict[str, bytes]]:
    """Path → bytes of each checkpoint of that name, oldest first, as the view shows them."""
    return [
        {str(path.relative_to(mounted.by_id(one))): path.read_bytes() for path in walk_files(mounted.by_id(one))}
        for one in mounted.committed(name)
    ]


def finish(mounted: Mount) -> None:
    """Have all committed, and look at it through a mount that has seen nothing of it."""
    mounted.umount()
    mounted.mount()


def test_names_that_differ_only_in_case_are_different(mounted: Mount) -> None:
    for number, name in enumerate(("step-1", "Step-1")):
        (mounted.path / name).mkdir()
        put(mounted.path / name / "w.pt", torch_zip(b"%d" % number))
        put(mounted.path / name / "W.pt", torch_zip(b"%d" % -number))
    put(mounted.path / "a.pt", torch_zip(b"a"))
    put(mounted.path / "A.pt", torch_zip(b"A"))
    finish(mounted)
    assert contents(mounted, "a.pt") == [{"a.pt": torch_zip(b"a")}]
    assert contents(mounted, "A.pt") == [{"A.pt": torch_zip(b"A")}]
    assert contents(mounted, "Step-1") == [{"w.pt": torch_zip(b"1"), "W.pt": torch_zip(b"-1")}]
    assert len(mounted.committed()) == 4


SAVE_OVER = """
import os, sys
path, who = sys.argv[1:]
for number in range(20):
    new = f"{path}.{who}.tmp"
    with open(new, "wb") as file:
        file.write(f"{who}{number:02}".encode() * 1000)
    os.replace(new, path)
"""


def test_of_two_programs_that_save_under_one_name_every_save_is_kept_whole(mounted: Mount) -> None:
    """S11: Each save of the same name is a new id."""
    command = [sys.executable, "-c", SAVE_OVER, str(mounted.path / "same.dat")]
    programs = [subprocess.Popen([*command, who]) for who in "ab"]
    assert [program.wait() for program in programs] == [0, 0]
    finish(mounted)
    kept = [files["same.dat"] for files in contents(mounted, "same.dat")]
    assert sorted(kept) == sorted(f"{who}{number:02}".encode() * 1000 for who in "ab" for number in range(20))
    assert kept[-1] == (mounted.path / "same.dat").read_bytes()


def test_a_symlink_that_leads_outside_is_kept_as_one_and_never_followed(mounted: Mount, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    put(outside / "secret", b"secret")
    unit = mounted.path / "step-1"
    unit.mkdir()
    put(unit / "w.pt", torch_zip())
    (unit / "directory").symlink_to(outside)
    (unit / "file").symlink_to(outside / "secret")
    (mounted.path / "checkpoints").symlink_to(outside)
    put(mounted.path / "checkpoints" / "elsewhere.pt", torch_zip())
    finish(mounted)
    (one,) = mounted.committed()
    top = mounted.by_id(one)
    assert sorted(os.listdir(top)) == ["directory", "file", "w.pt"]
    assert [os.readlink(top / name) for name in ("directory", "file")] == [str(outside), str(outside / "secret")]


def test_an_empty_file_is_whole_where_its_format_may_be_empty(mounted: Mount) -> None:
    mounted.expect_log("'empty.pt' is not whole")
    put(mounted.path / "empty.pt", b"")
    put(mounted.path / "empty.dat", b"")
    (mounted.path / "step-1").mkdir()
    (mounted.path / "best").mkdir()
    put(mounted.path / "best" / "done", b"")
    finish(mounted)
    assert {one.name for one in mounted.committed()} == {"empty.dat", "best"}
    assert [one.failure for one in mounted.committed(status="failed")] == ["empty.pt is empty"]


def test_what_mv_takes_away_before_it_was_committed_is_kept(mounted: Mount) -> None:
    """S10. mv asks renameat2 not to replace anything."""
    (mounted.path / "step-1").mkdir()
    put(mounted.path / "step-1" / "w.pt", torch_zip())
    subprocess.run(["mv", "step-1", "old.tmp"], cwd=mounted.path, check=True)
    shutil.rmtree(mounted.path / "old.tmp")
    mounted.wait_for("step-1")
    assert contents(mounted, "step-1") == [{"w.pt": torch_zip()}]


def test_units_that_a_mount_was_told_are_those_of_a_commit_without_one(mount_job: MountJob) -> None:
    """S7: `--unit GLOB` overrides."""
    mounted = mount_job("job", "--unit", "runs/*")
    (mounted.path / "runs").mkdir()
    put(mounted.path / "runs" / "x.dat", b"x")
    mounted.wait_for("runs/x.dat")
    put(mounted.path / "runs" / "y.dat", b"y")
    mounted.kill()
    assert mounted.cli("checkpoint", "commit", "job").returncode == 0
    assert [one.name for one in mounted.committed()] == ["runs/x.dat", "runs/y.dat"]
