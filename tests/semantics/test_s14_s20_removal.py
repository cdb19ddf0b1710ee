"""S14, S20: what removes checkpoints on a real mount, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from fuse_ckpt.store import Store
from scripts.mountpoints import is_mounted
from tests.conftest import MountJob
from tests.mount.harness import PROGRAM, Mount, wait_until
from tests.semantics.parity import opened, outcome, put

pytestmark = pytest.mark.mount


def blobs(mounted: Mount) -> set[bytes]:
    found = set()
    for path in (mounted.store / "blobs").glob("*/*"):
        with suppress(FileNotFoundError):  # the daemon removes some meanwhile
            found.add(path.read_bytes())
    return found


def gc(mounted: Mount, *options: str) -> subprocess.CompletedProcess[str]:
    said = mounted.cli("checkpoint", "gc", *(options or ("--trash-ttl", "0")))
    assert said.returncode == 0, said.stderr
    return said


def delete(mounted: Mount, *checkpoints: Any) -> None:
    said = mounted.cli("checkpoint", "delete", "--yes", *(each.id for each in checkpoints))
    assert said.returncode == 0, said.stderr


def names(mounted: Mount) -> list[str]:
    return [found.name for found in mounted.committed()]


def store_says(mounted: Mount, ask: Any) -> Any:
    with Store.open(mounted.store) as store:
        return ask(store)


# policies


def test_a_policy_that_the_user_chose_is_applied_after_each_commit(mount_job: MountJob) -> None:
    """S14: Committed checkpoints go only by `checkpoint delete` or by a retention policy that the user chose."""
    mounted = mount_job("job", "--retain", "keep-last=2", "--trash-ttl", "0")
    for step in range(1, 5):
        put(mounted.path / f"step_{step}.bin", b"weights %d" % step)
        put(mounted.path / "best.bin", b"best %d" % step)
        mounted.wait_for("best.bin", min(step, 2))
    wait_until("two of each series are left", lambda: sorted(names(mounted)) == [
        "best.bin", "best.bin", "step_3.bin", "step_4.bin",
    ])  # fmt: skip
    wait_until("the bytes went", lambda: blobs(mounted) == {b"weights 3", b"weights 4", b"best 3", b"best 4"})
    assert sorted(os.listdir(mounted.path)) == ["best.bin", *(f"step_{step}.bin" for step in range(1, 5))]
    assert (mounted.path / "step_1.bin").read_bytes() == b"weights 1"
    wait_until("it is told", lambda: mounted.status()["kept"]["removed"] == 4)
    before = mounted.committed()
    mounted.umount()
    mounted.mount("--foreground")  # what was removed is not committed again, and the policy is the job's
    mounted.umount()
    assert mounted.committed() == before
    assert store_says(mounted, lambda store: store.job("job").retain) == "keep-last=2"


def test_without_a_policy_nothing_goes(mounted: Mount) -> None:
    """S14: Removing in the output directory removes a name there and nothing else."""
    for step in range(1, 4):
        put(mounted.path / f"step_{step}.bin", b"%d" % step)
        mounted.wait_for(f"step_{step}.bin")
        (mounted.path / f"step_{step}.bin").unlink()
    gc(mounted)
    assert len(names(mounted)) == 3


def test_a_policy_leaves_a_trash_that_can_be_restored_from(mount_job: MountJob) -> None:
    mounted = mount_job("job", "--retain", "keep-last=1")
    for step in (1, 2):
        put(mounted.path / f"step_{step}.bin", b"%d" % step)
        mounted.wait_for(f"step_{step}.bin")
    [gone] = wait_until("one is in the trash", lambda: store_says(mounted, lambda store: store.trash()))
    assert mounted.cli("checkpoint", "restore", gone.id).returncode == 0
    assert mounted.cli("checkpoint", "pin", gone.id).returncode == 0
    put(mounted.path / "step_3.bin", b"3")
    mounted.wait_for("step_3.bin")
    wait_until("the policy was applied", lambda: names(mounted) == ["step_1.bin", "step_3.bin"])


def test_before_the_disk_is_full_the_oldest_go_and_never_the_newest(mount_job: MountJob) -> None:
    """The disk has never so much room; what the working tree holds would free nothing, and stays."""
    mounted = mount_job()
    for step in range(1, 5):
        put(mounted.path / f"step_{step}.bin", b"weights %d" % step)
        mounted.wait_for(f"step_{step}.bin")
    for step in (1, 2, 4):
        (mounted.path / f"step_{step}.bin").unlink()
    mounted.umount()
    assert len(names(mounted)) == 4
    mounted.mount("--min-free", "100000TB")
    wait_until("what frees something is gone", lambda: names(mounted) == ["step_3.bin", "step_4.bin"])
    wait_until("its bytes, too", lambda: blobs(mounted) == {b"weights 3", b"weights 4"})
    wait_until("it is told", lambda: mounted.status()["kept"]["collected"] == 2)


def test_a_bad_policy_is_refused_before_anything_is_mounted(mounted: Mount, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    said = mounted.cli("mount", "other", str(place), "--retain", "keep-all")
    assert said.returncode == 2
    assert said.stderr.startswith("Policy term 'keep-all' is no rule")
    assert not is_mounted(place)


# what stays away


def test_what_was_deleted_does_not_come_back_with_the_next_mount(mounted: Mount) -> None:
    """Its files lie in the working tree still, unchanged: no mount takes them for new."""
    (mounted.path / "step_1").mkdir()
    torch.save({"w": torch.arange(9)}, mounted.path / "step_1" / "model.pt")
    put(mounted.path / "flat.bin")
    mounted.umount()
    deleted = mounted.committed()
    assert len(deleted) == 2
    delete(mounted, *deleted)
    for collected in (False, True):
        if collected:
            gc(mounted)
            assert blobs(mounted) == set()
        mounted.mount()
        mounted.umount()
        assert names(mounted) == []
    mounted.mount()
    with open(mounted.path / "flat.bin", "r+b") as file:
        file.write(b"changed")
    put(mounted.path / "step_1" / "more.bin", b"more")
    [changed] = mounted.wait_for("flat.bin")
    assert changed.ordinal == 2
    mounted.umount()
    assert sorted(names(mounted)) == ["flat.bin", "step_1"]


def test_a_file_whose_blob_was_collected_is_an_ordinary_file_again(mounted: Mount) -> None:
    file = put(mounted.path / "flat.bin", b"old bytes")
    [one] = mounted.wait_for("flat.bin")
    backing = mounted.store / "jobs" / "job" / "work" / "flat.bin"
    wait_until("its name and the blob's are left", lambda: backing.stat().st_nlink == 2)
    before = backing.stat()
    delete(mounted, one)
    assert "stay in working trees" in gc(mounted).stdout
    assert blobs(mounted) == set()
    assert file.stat().st_nlink == 1
    wait_until("it is sealed no more", lambda: mounted.status()["kept"]["unsealed"] == 1)
    with open(file, "ab") as f:
        f.write(b" and new ones")
    assert backing.stat().st_ino == before.st_ino
    assert file.stat().st_nlink == 1
    [again] = mounted.wait_for("flat.bin")
    assert again.ordinal == 2
    assert blobs(mounted) == {b"old bytes and new ones"}


# the read view


def test_collecting_leaves_what_is_held_open(mounted: Mount) -> None:
    """S20: a directory in use stays whole as long as it is used: `delete` hides, only `collect` removes, and it leaves
    what is leased or held open."""
    d = mounted.path / "step_1"
    d.mkdir()
    for name in ("held.bin", "later.bin"):
        put(d / name, name.encode())
    mounted.umount()
    mounted.mount()
    (found,) = mounted.committed("step_1")
    with opened(mounted.by_id(found), os.O_RDONLY | os.O_DIRECTORY) as used:
        delete(mounted, found)
        wait_until("hidden", lambda: outcome(os.stat, mounted.by_id(found)) == "ENOENT")
        said = gc(mounted)
        assert said.stderr.startswith(f"Left alone {found.id}: in use by a mount of job job, process ")
        assert sorted(os.listdir(used)) == ["held.bin", "later.bin"]
        later = os.open("later.bin", os.O_RDONLY, dir_fd=used)
        assert os.read(later, 20) == b"later.bin"
        os.close(later)
    wait_until("collected once nobody uses it", lambda: f"Collected {found.id}" in gc(mounted).stdout)
    assert blobs(mounted) == set()


def test_what_was_only_looked_at_is_not_in_use(mounted: Mount) -> None:
    """The kernel remembers each name that was ever looked up; it is told to forget what was deleted."""
    saved = []
    for step in range(1, 4):
        put(mounted.path / f"step_{step}.bin", b"%d" % step)
        saved += mounted.wait_for(f"step_{step}.bin")
    for where, _, files in os.walk(mounted.view):
        for name in files:
            (Path(where) / name).read_bytes()
    delete(mounted, *saved[:2])
    wait_until("both are collected", lambda: (gc(mounted), len(blobs(mounted)) == 1)[1])
    assert (mounted.by_id(saved[2]) / "step_3.bin").read_bytes() == b"3"


def test_a_file_that_is_held_keeps_its_bytes_and_what_is_mapped_too(mounted: Mount) -> None:
    put(mounted.path / "flat.bin", b"flat")
    [one] = mounted.wait_for("flat.bin")
    with opened(mounted.by_id(one) / "flat.bin", os.O_RDONLY) as fd:
        delete(mounted, one)
        wait_until("hidden", lambda: outcome(os.stat, mounted.by_id(one)) == "ENOENT")
        gc(mounted)
        assert os.pread(fd, 9, 0) == b"flat"
        assert blobs(mounted) == {b"flat"}
    wait_until("collected", lambda: (gc(mounted), blobs(mounted) == set())[1])


@contextmanager
def browsing(mounted: Mount, place: Path) -> Iterator[Path]:
    place.mkdir()
    said = mounted.cli("browse", str(place))
    assert said.returncode == 0, said.stderr
    try:
        yield place
    finally:
        said = mounted.cli("umount", str(place))
        assert said.returncode == 0, said.stderr


def test_browsing_holds_as_a_mount_does(mounted: Mount, tmp_path: Path) -> None:
    put(mounted.path / "flat.bin", b"flat")
    [one] = mounted.wait_for("flat.bin")
    with browsing(mounted, tmp_path / "browse") as top:
        with opened(top / "job" / "by-id" / one.id, os.O_RDONLY | os.O_DIRECTORY) as used:
            delete(mounted, one)
            assert "in use by browse, process" in gc(mounted).stderr
            assert os.listdir(used) == ["flat.bin"]
        wait_until("collected", lambda: (gc(mounted), blobs(mounted) == set())[1])


def test_what_a_killed_daemon_held_is_collected(mounted: Mount) -> None:
    put(mounted.path / "flat.bin", b"flat")
    [one] = mounted.wait_for("flat.bin")
    os.listdir(mounted.by_id(one))
    delete(mounted, one)
    mounted.kill()
    assert f"Collected {one.id}" in gc(mounted).stdout


def test_what_a_run_resumed_from_is_leased(mount_job: MountJob, tmp_path: Path) -> None:
    """S20: it leaves what is leased."""
    first = mount_job("first")
    put(first.path / "flat.bin", b"flat")
    [one] = first.wait_for("flat.bin")
    second = mount_job("second", "--input", one.id)
    for command in (("checkpoint", "delete", "--yes", one.id), ("training", "delete", "--yes", "first")):
        said = first.cli(*command)
        assert said.returncode == 5
        assert said.stderr.count("\n") == 1
    assert "is in use by a mount of job second" in first.cli("checkpoint", "delete", "--yes", one.id).stderr
    rows = json.loads(gc(first, "--policy", "keep-within=0", "--dry-run", "--json").stdout)["checkpoints"]
    assert [row["reason"].split(", ")[0] for row in rows] == ["in use by a mount of job second"]
    second.umount()


# the end of a job


def test_a_mounted_job_is_not_deleted_and_an_ended_one_is(mounted: Mount) -> None:
    put(mounted.path / "flat.bin", b"flat")
    put(mounted.path / "train.log", b"a line\n")
    [one] = mounted.wait_for("flat.bin")
    said = mounted.cli("training", "delete", "--yes", "job")
    assert (said.returncode, said.stderr.count("\n")) == (5, 1)
    assert "is mounted already at" in said.stderr
    assert mounted.committed() == [one]
    mounted.umount()
    mounted.cli("checkpoint", "gc", "--work")
    assert os.listdir(mounted.store / "jobs" / "job" / "work") == ["train.log"]
    said = mounted.cli("training", "delete", "--yes", "job")
    assert said.returncode == 0, said.stderr
    assert os.listdir(mounted.store / "jobs") == []
    gc(mounted)
    assert blobs(mounted) == set()
    mounted.log_path.touch()


def test_two_gc_at_once_remove_all_there_is_once(mounted: Mount) -> None:
    saved = []
    for step in range(1, 9):
        put(mounted.path / f"step_{step}.bin", b"%d" % step)
        saved += mounted.wait_for(f"step_{step}.bin")
        (mounted.path / f"step_{step}.bin").unlink()
    delete(mounted, *saved[:-1])
    command = [*PROGRAM, "--store", str(mounted.store), "checkpoint", "gc", "--trash-ttl", "0"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [each.communicate(timeout=60) for each in running]
    assert {each.returncode for each in running} <= {0, 5}
    refused = [err for each, (_, err) in zip(running, said, strict=True) if each.returncode]
    assert all("is collecting: try again" in err for err in refused)
    gc(mounted)
    assert blobs(mounted) == {b"8"}
    assert names(mounted) == ["step_8.bin"]
