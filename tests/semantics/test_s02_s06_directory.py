"""The output directory is an ordinary directory: what is in it, its times, its life, its disk."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import MountJob
from tests.mount.harness import Mount, wait_until
from tests.semantics.parity import opened, put, tree

pytestmark = pytest.mark.mount
LONG_AGO = 10**18
CLOCK_REALTIME_COARSE = 5  # what older kernels stamp files with


def test_a_fresh_output_directory_is_empty(mounted: Mount) -> None:
    """S2: It holds nothing of ours in a listing: os.listdir of a fresh output directory is empty, os.walk and rmtree
    meet only what the program made."""
    assert os.listdir(mounted.path) == []
    assert list(os.walk(mounted.path)) == [(str(mounted.path), [], [])]
    torch.save({"w": torch.zeros(10)}, mounted.path / "ckpt.pt")
    (mounted.path / "step_1").mkdir()
    torch.save({"w": torch.zeros(10)}, mounted.path / "step_1" / "model.pt")
    mounted.wait_for("ckpt.pt")
    os.stat(mounted.view / "latest")
    assert sorted(os.listdir(mounted.path)) == ["ckpt.pt", "step_1"]
    assert subprocess.run(["ls", "-A", mounted.path], capture_output=True, check=True).stdout == b"ckpt.pt\nstep_1\n"
    for name in os.listdir(mounted.path):
        path = mounted.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert os.listdir(mounted.path) == []
    assert mounted.view.is_dir()


def test_show_checkpoints_lists_the_read_view(mount_job: MountJob) -> None:
    """S2, the choice of a person: --show-checkpoints lists it."""
    mounted = mount_job("job", "--show-checkpoints")
    assert os.listdir(mounted.path) == [".checkpoints"]


def test_commits_and_reads_change_no_time(mounted: Mount) -> None:
    """S3: Directory and file times are real, distinct, and change on namespace changes only; commits and reads change
    none (ctime aside)."""
    for step in (1, 2, 3):
        (mounted.path / f"checkpoint-{step}").mkdir()
        put(mounted.path / f"checkpoint-{step}" / "model.bin")
    put(mounted.path / "flat.bin")
    paths = [mounted.path, *mounted.path.iterdir(), *mounted.path.glob("*/*")]
    before = [path.stat().st_mtime_ns for path in paths]
    mounted.wait_for("flat.bin")
    mounted.umount()  # commits the rest
    mounted.mount()
    assert len(mounted.committed()) == 4
    for path in paths:
        _ = path.read_bytes() if path.is_file() else os.listdir(path)
    assert [path.stat().st_mtime_ns for path in paths] == before


def a_tick_later() -> None:
    tick = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    wait_until("the next tick", lambda: time.clock_gettime_ns(CLOCK_REALTIME_COARSE) > tick)


def test_directories_keep_the_order_in_which_they_were_made(mounted: Mount) -> None:
    """S3: Trainers rotate by directory mtime."""
    for step in (300, 100, 200):
        (mounted.path / f"checkpoint-{step}").mkdir()
        put(mounted.path / f"checkpoint-{step}" / "model.bin")
        a_tick_later()
    order = sorted(mounted.path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in order] == ["checkpoint-300", "checkpoint-100", "checkpoint-200"]


def test_writing_changes_the_file_s_time_and_names_change_the_directory_s(mounted: Mount) -> None:
    """S3: Directory and file times are real, distinct, and change on namespace changes only."""
    d = mounted.path / "step_1"
    d.mkdir()
    put(d / "f")
    for path in (d / "f", d):
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    with opened(d / "f", os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 3)
    assert (d / "f").stat().st_mtime_ns > LONG_AGO
    assert d.stat().st_mtime_ns == LONG_AGO
    os.rename(d / "f", d / "g")
    assert d.stat().st_mtime_ns > LONG_AGO


def test_what_is_written_is_read_at_once_by_another_process(mounted: Mount) -> None:
    """S4: Read-back is immediate: what one process wrote and closed, or only wrote, another reads."""
    path = mounted.path / "ckpt.bin"
    reader = subprocess.Popen(
        [sys.executable, "-S", "-c", _READER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    with reader, opened(path, os.O_CREAT | os.O_RDWR) as fd:
        for turn in range(20):
            os.pwrite(fd, b"%09d" % turn, turn * 9)
            if turn == 10:
                os.ftruncate(fd, 11 * 9)
            reader.stdin.write("look\n")
            expected = b"".join(b"%09d" % number for number in range(turn + 1)).decode()
            assert reader.stdout.readline().strip() == f"{expected} {expected} {len(expected)}"
        reader.stdin.close()


_READER = """
import os, sys
held = None
for _ in sys.stdin:
    held = os.open(sys.argv[1], os.O_RDONLY) if held is None else held
    fresh = open(sys.argv[1], "rb").read().decode()
    print(os.pread(held, 10000, 0).decode(), fresh, os.stat(sys.argv[1]).st_size, flush=True)
"""


def test_whoever_held_a_committed_file_open_reads_the_old_bytes(mounted: Mount) -> None:
    """S4: One exception: whoever held a file of a committed checkpoint open before it was rewritten in place goes on
    reading the old bytes."""
    path = put(mounted.path / "ckpt.bin", b"first")
    mounted.wait_for("ckpt.bin")
    with opened(path, os.O_RDONLY) as held:
        put(path, b"second")
        assert os.pread(held, 100, 0) == b"first"
        assert path.read_bytes() == b"second"


@pytest.mark.parametrize("end", ["umount", "kill"])
def test_the_directory_is_there_at_the_next_mount(mount_job: MountJob, end: str) -> None:
    """S5: It survives: what was in it at unmount, kill or crash is there at the next mount of the job."""
    mounted = mount_job()
    d = mounted.path
    (d / "step_1" / "empty").mkdir(parents=True)
    put(d / "step_1" / "f", b"x" * 100_000)
    put(d / "ckpt.bin")
    os.link(d / "ckpt.bin", d / "copy.bin")
    os.symlink("step_1", d / "latest")
    os.chmod(d / "ckpt.bin", 0o640)
    os.setxattr(d / "ckpt.bin", "user.a", b"1")
    os.utime(d / "step_1", ns=(LONG_AGO, LONG_AGO))
    unfinished = os.open(os.fsencode(d) + b"/\xff.log", os.O_CREAT | os.O_WRONLY)
    os.write(unfinished, b"half")
    before = tree(d)
    if end == "kill":
        mounted.kill()
        with pytest.raises(OSError, match="Transport"):
            os.close(unfinished)
    else:
        os.close(unfinished)
        mounted.umount()
    assert os.listdir(d) == []
    mounted.mount()
    assert tree(d) == before
    assert (d / "step_1").stat().st_mtime_ns == LONG_AGO
    assert os.getxattr(d / "ckpt.bin", "user.a") == b"1"


def test_a_program_hears_of_the_daemons_death(mounted: Mount, data_path: str) -> None:
    """S5, S15: a program hears of the daemon's death, at its next write or, where the kernel moves the data, at the
    close; nothing goes into the bare directory below."""
    fd = os.open(mounted.path / "ckpt.bin", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"before")
    mounted.kill(clear=False)
    written = b"before"
    if data_path == "passthrough":
        assert os.write(fd, b" and after") == 10
        written += b" and after"
    else:
        with pytest.raises(OSError, match="Transport"):
            os.write(fd, b" and after")
    for call in (os.fstat, os.fsync, os.close):
        with pytest.raises(OSError, match="Transport"):
            call(fd)
    with pytest.raises(OSError, match="Transport"):
        put(mounted.path / "other.bin")
    mounted.mount()  # over the stale mount: it clears that itself
    assert (mounted.path / "ckpt.bin").read_bytes() == written


def test_statfs_tells_the_disk_s_truth(mounted: Mount) -> None:
    """S6: statfs tells the disk's truth."""
    (mounted.path / "dir").mkdir()
    for place in (mounted.path, mounted.path / "dir", mounted.view):
        there, disk = os.statvfs(place), os.statvfs(mounted.store)
        for field in ("f_frsize", "f_blocks", "f_files", "f_namemax"):
            assert getattr(there, field) == getattr(disk, field), field
        assert abs(there.f_bavail - disk.f_bavail) * disk.f_frsize < 2 << 30  # others write to that disk too
    free = shutil.disk_usage(mounted.path)
    assert free.total == os.statvfs(mounted.store).f_blocks * os.statvfs(mounted.store).f_frsize


def fill(file: io.RawIOBase) -> None:
    for _ in range(100):
        file.write(bytes(1 << 20))


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_heard_at_write(mount_job: MountJob, tmp_path: Path) -> None:
    """S6: a full disk is ENOSPC at write(), where every library hears it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], check=True)
    try:
        mounted = mount_job("job", store=disk / "store")
        put(mounted.path / "small.bin")
        (small,) = mounted.wait_for("small.bin")
        with open(mounted.path / "big.log", "wb", buffering=0) as f, pytest.raises(OSError, match="No space left"):
            fill(f)
        (mounted.path / "big.log").unlink()
        put(mounted.path / "later.bin")
        mounted.wait_for("later.bin")
        assert (mounted.by_id(small) / "small.bin").read_bytes() == b"0123456789"
        mounted.umount()
        assert mounted.close() == []
    finally:
        wait_until("the disk is free", lambda: not subprocess.run(["umount", disk], check=False).returncode)
