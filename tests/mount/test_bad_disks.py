"""A disk that is full, read-only, or gives errors: training hears it in time, nothing is damaged, nothing is false."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from fuse_ckpt.store import Store
from tests.conftest import MountJob
from tests.mount.disks import fill, remount, small_disk
from tests.mount.harness import Mount, wait_until
from tests.mount.runs import one_line
from tests.semantics.parity import put
from tests.store.conftest import age

pytestmark = [pytest.mark.mount, pytest.mark.once]
MIB = 1 << 20

# fuse-ckpt that tries again soon after a disk was full, and whose fault points raise an error while a file exists.
IMPATIENT = """
import errno, os, sys
from fuse_ckpt import faults
from fuse_ckpt.cli import main
from fuse_ckpt.staging import committer

committer.RETRY_COMMIT = 0.2

def fail(point):
    if os.path.exists(os.environ.get("FAIL_IF", "/nonexistent") + "." + point):
        number = getattr(errno, os.environ["FAIL_WITH"])
        raise OSError(number, os.strerror(number))

with faults.install(fail):
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path, 24 * MIB) as place:
        yield place


def impatient(mount_job: MountJob, store: Path | None, *options: str) -> Mount:
    return mount_job("job", *options, store=store, ready=False).mount(program=(sys.executable, "-c", IMPATIENT))


def fill_up(file: FileIO) -> None:
    while True:
        file.write(bytes(MIB))


def closed(mounted: Mount) -> None:
    """Take it down now, while its disk is there."""
    assert mounted.close() == []


def test_training_hears_of_a_full_disk_at_write_and_goes_on_when_there_is_room(mount_job: MountJob, disk: Path) -> None:
    mounted = mount_job("job", store=disk / "store")
    put(mounted.path / "small.bin")
    (small,) = mounted.wait_for("small.bin")
    with open(mounted.path / "big.bin", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        fill_up(file)
    mounted.allow_log("big.bin|cannot (commit|keep)")
    assert (mounted.by_id(small) / "small.bin").read_bytes() == b"0123456789"
    assert mounted.cli("training", "checkpoints", "job", "--json").returncode == 0
    os.truncate(mounted.path / "big.bin", 0)
    (mounted.path / "big.bin").unlink()
    for one in mounted.committed(status="failed") + mounted.committed("big.bin"):
        assert mounted.cli("checkpoint", "delete", one.id, "--yes").returncode == 0
    closed(mounted)


def test_commits_on_a_full_disk_wait_for_room_and_the_index_is_never_damaged(mount_job: MountJob, disk: Path) -> None:
    mounted = impatient(mount_job, disk / "store")
    put(mounted.path / "before.bin")
    mounted.wait_for("before.bin")
    names = [f"step_{n}" for n in range(20)]
    for name in names:
        (mounted.path / f"{name}.tmp").mkdir()
        (mounted.path / f"{name}.tmp" / "m.bin").write_bytes(name.encode() * 1000)
    ballast = fill(disk)
    mounted.allow_log("No space left|Input/output error|cannot (commit|seal|keep)")
    for name in names:
        os.rename(mounted.path / f"{name}.tmp", mounted.path / name)
    wait_until("a commit fails", lambda: "No space left" in (mounted.daemon.log if mounted.daemon else ""))
    assert [one.name for one in mounted.committed("before.bin")] == ["before.bin"]
    with Store.open(mounted.store) as store:
        assert store.verify() == []
    ballast.unlink()
    for name in names:
        (one,) = mounted.wait_for(name)
        assert (mounted.by_id(one) / "m.bin").read_bytes() == name.encode() * 1000
    closed(mounted)


def test_what_a_full_disk_kept_from_being_committed_is_pending_and_told(mount_job: MountJob, disk: Path) -> None:
    mounted = impatient(mount_job, disk / "store")
    (mounted.path / "step_1.tmp").mkdir()
    (mounted.path / "step_1.tmp" / "m.bin").write_bytes(b"weights")
    ballast = fill(disk)
    mounted.allow_log("No space left|Input/output error|cannot (commit|seal|keep)")
    os.rename(mounted.path / "step_1.tmp", mounted.path / "step_1")
    wait_until("it fails", lambda: "No space left" in (mounted.daemon.log if mounted.daemon else ""))
    assert [(one["name"], one["status"]) for one in mounted.checkpoints(all=True)] == [("step_1", "pending")]
    mounted.kill()
    assert mounted.cli("training", "checkpoints", "job", "--json", "--all").returncode == 0
    ballast.unlink()
    mounted.mount()
    mounted.wait_for("step_1")
    closed(mounted)


@pytest.mark.parametrize("error", ["EIO", "EDQUOT", "ENOSPC"])
def test_a_checkpoint_that_the_disk_cannot_write_is_failed_with_the_reason(
    mount_job: MountJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """The kernel tells of it once, and the next fsync says that all is well; the same file saved again is as good as
    any."""
    monkeypatch.setenv("FAIL_IF", str(tmp_path / "fail"))
    monkeypatch.setenv("FAIL_WITH", error)
    switch = put(tmp_path / "fail.adopt:fsync")
    mounted = impatient(mount_job, None)
    put(mounted.path / "m.bin")
    mounted.expect_log("cannot commit 'm.bin'|not whole")
    wait_until("it failed", lambda: "cannot commit" in (mounted.daemon.log if mounted.daemon else ""))
    switch.unlink()
    (one,) = mounted.wait_for("m.bin", status="failed")
    assert one.failure == f"m.bin could not be written to the disk: {os.strerror(getattr(errno, error))}"
    assert (mounted.by_id(one) / "m.bin").read_bytes() == b"0123456789"
    put(mounted.path / "m.bin", b"again")
    (one,) = mounted.wait_for("m.bin")
    assert (mounted.by_id(one) / "m.bin").read_bytes() == b"again"


@pytest.mark.parametrize("point", ["adopt:link", "adopt:dirsync", "publish:manifest", "publish:txn"])
@pytest.mark.parametrize("error", ["EIO", "EDQUOT"])
def test_an_error_of_the_disk_at_any_step_of_a_commit_is_never_silently_fine(
    mount_job: MountJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, error: str
) -> None:
    """After EIO the next mount writes the bytes anew; a quota is tried again."""
    monkeypatch.setenv("FAIL_IF", str(tmp_path / "fail"))
    monkeypatch.setenv("FAIL_WITH", error)
    switch = put(tmp_path / f"fail.{point}")
    mounted = impatient(mount_job, None)
    put(mounted.path / "m.bin")
    mounted.expect_log("cannot commit 'm.bin'")
    wait_until("it failed", lambda: "cannot commit" in (mounted.daemon.log if mounted.daemon else ""))
    assert mounted.committed() == []
    assert [(one["name"], one["status"]) for one in mounted.checkpoints(all=True)] == [("m.bin", "pending")]
    switch.unlink()
    if error == "EIO":
        mounted.umount()
        assert mounted.committed() == []
        mounted.mount()
    (one,) = mounted.wait_for("m.bin")
    assert (mounted.by_id(one) / "m.bin").read_bytes() == b"0123456789"


@pytest.mark.parametrize("made_by", ["this", "older"])
def test_a_store_on_a_read_only_disk_is_read_and_refuses_the_rest_in_words(
    mount_job: MountJob, disk: Path, tmp_path: Path, made_by: str
) -> None:
    mounted = mount_job("job", store=disk / "store")
    put(mounted.path / "m.bin")
    (one,) = mounted.wait_for("m.bin")
    closed(mounted)
    if made_by == "older":
        age(disk / "store")
    remount(disk, "ro")
    for question in (
        ["checkpoint", "list"], ["training", "list"], ["training", "checkpoints", "job", "--wide"], ["doctor"],
        ["storage", "list"], ["stats"],
    ):  # fmt: skip
        said = mounted.cli(*question)
        assert said.returncode == 0, said.stderr
    assert mounted.cli("checkpoint", "inspect", one.id).returncode == 0
    fetched = mounted.cli("checkpoint", "fetch", one.id, "--destination", str(tmp_path / "out"))
    assert fetched.returncode == 0, fetched.stderr
    assert (tmp_path / "out" / "m.bin").read_bytes() == b"0123456789"
    for code, command in (
        (1, ["mount", "job", str(mounted.path)]),
        (1, ["mount", "new", str(mounted.path)]),
        (125, ["training", "run", "new", "--", "true"]),
        (1, ["checkpoint", "delete", one.id, "--yes"]),
    ):
        said = mounted.cli(*command)
        assert (said.returncode, one_line(said.stderr)) == (code, True), said.stderr
        assert "ead-only" in said.stderr
        assert "remount,rw" in said.stderr
    remount(disk, "rw")
    mounted.mount()
    assert [found.id for found in mounted.committed()] == [one.id]
    closed(mounted)
