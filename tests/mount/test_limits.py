"""How large things may be: files in a checkpoint, jobs in a store, a file's holes, a path's length."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_ckpt.model import Entry, Kind, Metadata, NewCheckpoint, Shape, Unit
from fuse_ckpt.store import Store
from tests.conftest import MountJob
from tests.mount.harness import Mount
from tests.semantics.parity import put

pytestmark = [pytest.mark.mount, pytest.mark.once]
GIB = 1 << 30


def test_a_checkpoint_of_100_000_files_is_listed_and_read(mount_job: MountJob, tmp_path: Path) -> None:
    count = 100_000
    mounted = mount_job("job", ready=False)
    with Store.open(mounted.store) as store, store.committing():
        store.ensure_job("job", 1)
        adopted = store.adopt(put(tmp_path / "small"))
        entries = tuple(
            Entry(f"{n // 1000:03}/{n:06}", Kind.FILE, 0o644, n, adopted.size, adopted.digest) for n in range(count)
        )
        one = store.publish(NewCheckpoint("job", Unit("x", Shape.DIRECTORY), "0", 1, Metadata(), entries))
    mounted.mount()
    started = time.monotonic()
    seen = sum(len(files) for _, _, files in os.walk(mounted.by_id(one)))
    print(f"{count:,} files listed in {time.monotonic() - started:.1f} s")
    assert seen == count
    assert (mounted.by_id(one) / "042" / "042007").read_bytes() == b"0123456789"
    assert (mounted.by_id(one) / "042" / "042007").stat().st_mtime_ns == 42007
    said = mounted.cli("checkpoint", "inspect", one.id, "--json")
    assert len(json.loads(said.stdout)["status"]["files"]) == count


def test_a_store_of_1_000_jobs_is_listed_browsed_and_mounted(mount_job: MountJob) -> None:
    mounted = mount_job("job-500", ready=False)
    with Store.open(mounted.store) as store:
        for n in range(1000):
            store.ensure_job(f"job-{n}", n)
    said = mounted.cli("training", "list", "--json")
    assert [one["name"] for one in json.loads(said.stdout)] == [f"job-{n}" for n in range(1000)]
    mounted.mount()
    put(mounted.path / "m.bin")
    mounted.wait_for("m.bin")
    assert mounted.cli("stats").returncode == 0


def test_a_file_with_holes_keeps_them_in_the_store(mounted: Mount) -> None:
    """A sparse file is hashed whole, as any other, and takes no more room than it did."""
    with open(mounted.path / "sparse.bin", "wb") as file:
        file.write(b"begin")
        file.truncate(2 * GIB)
        file.seek(GIB)
        file.write(b"middle")
    (one,) = mounted.wait_for("sparse.bin", patience=120)
    assert one.size == 2 * GIB
    blob = next((mounted.store / "blobs").glob("*/*"))
    assert blob.stat().st_size == 2 * GIB
    assert blob.stat().st_blocks * 512 < GIB // 100
    with open(mounted.by_id(one) / "sparse.bin", "rb") as file:
        assert file.read(5) == b"begin"
        file.seek(GIB)
        assert file.read(6) == b"middle"
        assert os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA) == GIB


@contextlib.contextmanager
def deep_directory(top: Path, depth: int) -> Iterator[int]:
    """A descriptor of the last of `depth` nested directories below `top`, with names of 200 bytes."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for level in range(depth):
            name = f"{level:02}" + "d" * 198
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=fd)
            fd, above = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd), fd
            os.close(above)
        yield fd
    finally:
        os.close(fd)


def save_at(directory: int, data: bytes) -> None:
    fd = os.open("m.bin", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=directory)
    os.write(fd, data)
    os.close(fd)


def test_a_path_of_almost_4_096_bytes_is_committed_and_fetched(mount_job: MountJob, tmp_path: Path) -> None:
    mounted = mount_job("job", "--quiet-period", "0.3")
    depth = 19  # of 201 bytes each
    (mounted.path / "step_1").mkdir()
    with deep_directory(mounted.path / "step_1", depth) as bottom:
        save_at(bottom, b"deep")
    (one,) = mounted.wait_for("step_1")
    with deep_directory(mounted.by_id(one), depth) as bottom:
        fd = os.open("m.bin", os.O_RDONLY, dir_fd=bottom)
        assert os.read(fd, 10) == b"deep"
        os.close(fd)
    said = mounted.cli("checkpoint", "fetch", one.id, "--destination", str(tmp_path / "out"))
    assert said.returncode == 0, said.stderr
    with deep_directory(tmp_path / "out", depth) as bottom:
        assert os.listdir(bottom) == ["m.bin"]


def test_a_path_that_is_too_long_to_be_named_harms_nobody_else(mount_job: MountJob) -> None:
    """A program may make one with directory descriptors; no checkpoint can name it, and the mount goes on."""
    mounted = mount_job("job", "--quiet-period", "0.3")
    mounted.allow_log("File name too long|cannot seal|step_1")
    (mounted.path / "step_1").mkdir()
    with deep_directory(mounted.path / "step_1", 25) as bottom:
        save_at(bottom, b"too deep")
    put(mounted.path / "step_1" / "fine.bin")
    put(mounted.path / "other.bin")
    mounted.wait_for("other.bin")
    mounted.kill()
    mounted.mount()
    put(mounted.path / "another.bin")
    mounted.wait_for("another.bin")
    with deep_directory(mounted.path / "step_1", 25) as bottom:
        assert os.listdir(bottom) == ["m.bin"]
    mounted.umount()
    (failed,) = mounted.committed("step_1", status="failed")
    assert "longer than 4095 bytes" in (failed.failure or "")
