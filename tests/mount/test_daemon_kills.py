"""The crash matrix on a real mount: the daemon is killed at each named point, and the next mount has everything."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.mountpoints import is_mounted
from tests.conftest import MountJob
from tests.mount.harness import Mount, detach
from tests.staging.trainer import torch_zip

pytestmark = [pytest.mark.mount, pytest.mark.once]

# fuse-ckpt whose daemon is killed as it reaches the point that the environment names, the n-th time.
KILLED = """
import os, signal, sys
from fuse_ckpt import faults
from fuse_ckpt.cli import main

point, _, count = os.environ["KILL_AT"].rpartition("@")
left = int(count)

def die(reached):
    global left
    left -= reached == point
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

with faults.install(die):
    sys.exit(main(sys.argv[1:]))
"""
# Every point of a commit is in tests/staging/test_recovery.py, without a kernel; here are the kinds of them.
WHILE_COMMITTING = ["seal:linked@1", "seal:done@1", "adopt:link@2", "publish:txn@1", "publish:done@1"]
WHILE_MOUNTING = ["mount:recover@1", "mount:adopt@1", "mount:attach@1", "mount:serve@1"]
WHILE_UNMOUNTING = ["unmount:detach@1", "seal:done@1", "publish:txn@1", "unmount:drain@1", "unmount:done@1"]


@pytest.fixture
def job(mount_job: MountJob) -> Iterator[Mount]:
    """A job with one committed checkpoint, whose daemons may die."""
    mounted = mount_job("job", "--quiet-period", "60")
    (mounted.path / "kept.pt").write_bytes(torch_zip(b"kept"))
    mounted.wait_for("kept.pt")
    yield mounted
    detach(mounted.path)


def save(mounted: Mount, name: str = "step_1") -> None:
    """A unit of two files, which nothing but the unmounting, or its being renamed into place, makes due."""
    directory = mounted.path / name
    directory.mkdir()
    (directory / "a.pt").write_bytes(torch_zip(b"a"))
    (directory / "b.pt").write_bytes(torch_zip(b"b"))


def mount_to_be_killed(mounted: Mount, monkeypatch: pytest.MonkeyPatch, at: str) -> Mount:
    monkeypatch.setenv("KILL_AT", at)
    return mounted.mount(program=(sys.executable, "-c", KILLED))


def has_died(mounted: Mount) -> None:
    assert mounted.daemon is not None
    assert mounted.daemon.wait() == -9
    mounted.daemon = None


def assert_everything_is_there(mounted: Mount) -> None:
    """Mount over whatever was left: both checkpoints, each once, and nothing over."""
    mounted.mount()
    (kept,) = mounted.wait_for("kept.pt")
    (step,) = mounted.wait_for("step_1")
    assert kept.id < step.id
    assert (mounted.by_id(step) / "a.pt").read_bytes() == torch_zip(b"a")
    assert (mounted.by_id(step) / "b.pt").read_bytes() == torch_zip(b"b")
    assert (mounted.path / "step_1" / "a.pt").read_bytes() == torch_zip(b"a")
    assert [one["name"] for one in mounted.checkpoints(all=True)] == ["kept.pt", "step_1"]
    mounted.umount()
    store = mounted.store
    assert {path.stem for path in (store / "manifests").iterdir()} == {kept.id, step.id}
    assert len(list(store.glob("blobs/*/*"))) == 3
    assert os.listdir(store / "jobs/job/pending") == os.listdir(store / "tmp") == []


@pytest.mark.parametrize("at", WHILE_COMMITTING)
def test_killed_while_it_commits(job: Mount, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    job.umount()
    mount_to_be_killed(job, monkeypatch, at)
    save(job, "step_1.tmp")
    os.rename(job.path / "step_1.tmp", job.path / "step_1")
    has_died(job)
    assert_everything_is_there(job)


@pytest.mark.parametrize("at", WHILE_MOUNTING)
def test_killed_while_it_mounts(job: Mount, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    save(job)
    job.kill(clear=False)
    with pytest.raises(AssertionError, match="ended with -9"):
        mount_to_be_killed(job, monkeypatch, at)
    assert_everything_is_there(job)


@pytest.mark.parametrize("at", WHILE_UNMOUNTING)
def test_killed_while_it_unmounts(job: Mount, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    job.umount()
    mount_to_be_killed(job, monkeypatch, at)
    save(job)
    said = job.cli("umount", str(job.path))
    assert said.returncode == 0, said.stderr
    has_died(job)
    assert not is_mounted(job.path)
    assert_everything_is_there(job)


def test_killed_while_it_takes_up_what_a_kill_left(job: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three deaths in a row, each later in the same commit."""
    save(job)
    job.kill(clear=False)
    for at in ("seal:done@1", "adopt:link@2", "publish:done@1"):
        try:
            mount_to_be_killed(job, monkeypatch, at)
        except AssertionError:  # it died before it was ready
            continue
        has_died(job)
    assert_everything_is_there(job)


def test_every_point_of_the_session_is_in_the_matrix() -> None:
    source = Path(__file__).parents[2] / "fuse_ckpt" / "session" / "service.py"
    named = {line.split('"')[1] for line in source.read_text().splitlines() if line.strip().startswith('fault("')}
    tried = {at.partition("@")[0] for at in (*WHILE_MOUNTING, *WHILE_UNMOUNTING)}
    assert named <= tried
