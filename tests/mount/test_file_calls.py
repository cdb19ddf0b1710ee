"""Calls that pyfuse3 has no method for, and that the relay answers: as in a plain directory of the same disk."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness import Mount
from tests.semantics.parity import Operation, Operations, compare, opened, outcome, put

pytestmark = [pytest.mark.mount, pytest.mark.once]
operation = Operations()

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
NOREPLACE, EXCHANGE = 1, 2
BLOCK = 4096
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@pytest.fixture(autouse=True)
def _passthrough(shared: Mount) -> None:
    if shared.data_path != "passthrough":
        pytest.skip("pyfuse3 knows none of these: the kernel's own answers are there")


@operation
def reserve(d: Path) -> Any:
    seen = []
    for name, mode in (("size", 0), ("keep", KEEP_SIZE)):
        with opened(d / name, os.O_CREAT | os.O_RDWR) as fd:
            os.write(fd, b"data")
            fallocate(fd, mode, BLOCK, 10 * BLOCK)
            seen.append((os.fstat(fd).st_size, os.fstat(fd).st_blocks, os.pread(fd, 8, 0)))
    return seen, (d / "size").stat().st_size, (d / "keep").stat().st_size


@operation
def punch_and_seek_holes(d: Path) -> Any:
    with opened(d / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x" * 16 * BLOCK)
        before = os.pread(fd, 16 * BLOCK, 0)  # so that a cache would remember them
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4 * BLOCK, 8 * BLOCK)
        fallocate(fd, ZERO | KEEP_SIZE, 0, BLOCK)
        found = [
            outcome(os.lseek, fd, offset * BLOCK, whence)
            for offset in (0, 2, 5, 13, 16, 17)
            for whence in (os.SEEK_DATA, os.SEEK_HOLE)
        ]
        return len(before), found, os.fstat(fd).st_blocks, os.pread(fd, 16 * BLOCK, 0)


@operation
def seek_in_what_is_sparse_and_what_is_empty(d: Path) -> Any:
    with opened(d / "sparse", os.O_CREAT | os.O_RDWR) as fd:
        os.truncate(fd, 1 << 20)
        os.pwrite(fd, b"end", (1 << 20) - 3)
        found = [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE), os.lseek(fd, -3, os.SEEK_END)]
    with opened(put(d / "empty", b""), os.O_RDONLY) as fd:
        return found, outcome(os.lseek, fd, 0, os.SEEK_DATA), outcome(os.lseek, fd, 0, os.SEEK_HOLE)


@operation
def reserve_in_ways_that_cannot_be(d: Path) -> Any:
    put(d / "f", b"x" * 4 * BLOCK)
    with opened(d / "f", os.O_RDWR) as fd, opened(d / "f", os.O_RDONLY) as reader:
        return (
            outcome(fallocate, fd, 0, 0, 0),
            outcome(fallocate, fd, 0, -1, 10),
            outcome(fallocate, fd, PUNCH_HOLE, 0, BLOCK),
            outcome(fallocate, reader, 0, 0, BLOCK),
            outcome(fallocate, fd, KEEP_SIZE, 1 << 62, 1 << 62),
        )


@operation
def copy_ranges(d: Path) -> Any:
    put(d / "source", bytes(range(256)) * 64)
    with opened(d / "source", os.O_RDWR) as source, opened(d / "target", os.O_CREAT | os.O_RDWR) as target:
        os.pread(source, 10, 0)
        copied = [
            os.copy_file_range(source, target, 1000, 100, 50),
            os.copy_file_range(source, target, 10**6, 16000, 5000),
            os.copy_file_range(source, target, 10, 10**6, 0),
            os.copy_file_range(source, source, 100, 0, 8000),
            outcome(os.copy_file_range, source, source, 100, 0, 50),
        ]
        return copied, os.pread(target, 10**5, 0), os.fstat(target).st_size, os.pread(source, 10**5, 0)


@operation
def copy_by_programs(d: Path) -> Any:
    with opened(d / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * BLOCK, 1 << 20)
    subprocess.run(["cp", "--sparse=always", d / "f", d / "sparse"], check=True)
    subprocess.run(["cp", "--reflink=auto", "-p", d / "f", d / "cloned"], check=True)
    shutil.copyfile(d / "f", d / "copied")
    return [(d / name).stat().st_blocks for name in ("f", "sparse")]


@operation
def exchange_open_files(d: Path) -> Any:
    with opened(put(d / "one", b"1"), os.O_RDWR) as one, opened(put(d / "other", b"22"), os.O_RDWR) as other:
        refused = outcome(renameat2, d / "one", d / "other", NOREPLACE)
        renameat2(d / "one", d / "other", EXCHANGE)
        os.pwrite(one, b"one", 0)
        os.pwrite(other, b"other", 0)
        return refused, (d / "one").read_bytes(), (d / "other").read_bytes(), os.fstat(one).st_size


@operation
def write_synchronously(d: Path) -> Any:
    for name, flags in (("sync", os.O_SYNC), ("dsync", os.O_DSYNC)):
        with opened(d / name, os.O_CREAT | os.O_RDWR | flags) as fd:
            os.pwritev(fd, [b"one", b"two"], 2)
            os.fdatasync(fd)
    return (d / "sync").read_bytes()


@operation
def splice_through_a_pipe(d: Path) -> Any:
    put(d / "source", bytes(range(256)) * 100)
    reading, writing = os.pipe()
    with opened(d / "source", os.O_RDONLY) as source, opened(d / "target", os.O_CREAT | os.O_WRONLY) as target:
        while moved := os.splice(source, writing, 8192):
            while moved:
                moved -= os.splice(reading, target, moved)
    os.close(reading)
    os.close(writing)
    return (d / "target").stat().st_size


@pytest.mark.parametrize("program", operation, ids=lambda program: program.__name__)
def test_a_call_is_answered_as_in_a_plain_directory(program: Operation, shared: Mount, tmp_path: Path) -> None:
    compare(program, shared.path / program.__name__, tmp_path / "plain")


CHANGES: dict[str, Callable[[int], Any]] = {
    "reserve": lambda fd: fallocate(fd, 0, 0, 20 * BLOCK),
    "punch": lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, BLOCK),
    "copy": lambda fd: os.copy_file_range(fd, fd, BLOCK, 0, 2 * BLOCK),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_by_such_a_call_is_a_checkpoint_and_the_one_before_keeps_its_bytes(
    shared: Mount, name: str
) -> None:
    old = name.encode().ljust(BLOCK) + b"y" * 4 * BLOCK
    path = put(shared.path / f"{name}.bin", old)
    (first,) = shared.wait_for(path.name)
    with opened(path, os.O_RDWR) as fd:
        CHANGES[name](fd)
    _, second = shared.wait_for(path.name, 2)
    assert (shared.by_id(first) / path.name).read_bytes() == old
    assert (shared.by_id(second) / path.name).read_bytes() == path.read_bytes() != old


def test_blobs_can_be_searched_for_holes_and_copied_from_but_not_changed(shared: Mount) -> None:
    with opened(shared.path / "holes.bin", os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"x" * BLOCK, 1 << 20)
    (found,) = shared.wait_for("holes.bin")
    blob = shared.by_id(found) / "holes.bin"
    with opened(blob, os.O_RDONLY) as source, opened(shared.path / "copy.log", os.O_CREAT | os.O_RDWR) as target:
        assert os.lseek(source, 0, os.SEEK_DATA) == 1 << 20
        assert os.copy_file_range(source, target, BLOCK, 1 << 20) == BLOCK
        assert os.pread(target, BLOCK, 0) == b"x" * BLOCK
        assert outcome(fallocate, source, PUNCH_HOLE | KEEP_SIZE, 1 << 20, BLOCK) == "EBADF"
        assert outcome(os.copy_file_range, target, source, 10, 0, 0) == errno.errorcode[errno.EBADF]
