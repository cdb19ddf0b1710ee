"""The harness itself: a mount that is well leaves nothing to say."""

from __future__ import annotations

import os
import subprocess

import pytest

from scripts.mountpoints import APART, answers, is_mounted
from tests.mount.harness import Mount, sha256

pytestmark = pytest.mark.mount


def test_a_file_that_is_saved_becomes_a_checkpoint(mounted: Mount) -> None:
    (mounted.path / "ckpt.bin").write_bytes(b"weights")
    (found,) = mounted.wait_for("ckpt.bin")
    assert [one["id"] for one in mounted.checkpoints()] == [found.id]
    assert sha256(mounted.by_id(found) / "ckpt.bin") == sha256(mounted.path / "ckpt.bin")


def test_a_mount_comes_back_after_its_daemon_was_killed(mounted: Mount) -> None:
    (mounted.path / "ckpt.bin").write_bytes(b"weights")
    mounted.wait_for("ckpt.bin")
    mounted.kill()
    assert not is_mounted(mounted.path)
    mounted.mount()
    assert os.listdir(mounted.path) == ["ckpt.bin"]
    assert len(mounted.checkpoints(all=True)) == 1


def test_a_mount_answers_while_it_is_served_and_the_directory_below_it_does_not(mounted: Mount) -> None:
    assert answers(mounted.path)
    mounted.kill(clear=False)
    assert is_mounted(mounted.path)
    assert not answers(mounted.path)
    assert mounted.cli("umount", str(mounted.path)).returncode == 0
    assert not answers(mounted.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may unshare")
def test_a_mount_namespace_apart_keeps_no_mount_of_another_test(mounted: Mount) -> None:
    command = [*APART, "sh", "-c", "echo up; read _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        mounted.umount()  # says "still bound elsewhere" if it does
        assert other.poll() is None
        other.communicate("end\n")


def test_a_warning_in_the_log_does_not_go_unseen(mounted: Mount) -> None:
    (mounted.path / "torn.pt").write_bytes(b"PK\3\4 torn")
    mounted.umount()
    assert any("in the log" in problem for problem in mounted.close())
    mounted.expect_log("'torn.pt' is not whole")


def test_a_leaked_descriptor_does_not_go_unseen(mounted: Mount) -> None:
    assert mounted.daemon is not None
    with open(mounted.path / "open.bin", "wb") as f:
        f.write(b"weights")
        assert [name for name in mounted.daemon.leaked() if name.endswith("/work/open.bin")]
