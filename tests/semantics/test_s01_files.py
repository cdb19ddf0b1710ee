"""S1 Programs need no change and no configuration: files and what is in them."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness import Mount
from tests.semantics.parity import Operation, Operations, compare, opened, outcome, put

pytestmark = pytest.mark.mount
operation = Operations()


@operation
def create(d: Path) -> Any:
    for mode in (0o666, 0o600, 0o777, 0o444, 0o000):
        with opened(d / f"{mode:o}", os.O_CREAT | os.O_WRONLY, mode) as fd:
            os.write(fd, b"x")  # also where the mode alone would forbid it
    return outcome(os.open, d / "nowhere" / "f", os.O_CREAT | os.O_WRONLY), outcome(os.open, d / "missing", os.O_RDONLY)


@operation
def create_exclusively(d: Path) -> Any:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(d / "f", flags))
    os.symlink("nowhere", d / "dangling")
    return outcome(os.open, d / "f", flags), outcome(os.open, d / "dangling", flags)


@operation
def open_in_ways_that_cannot_be(d: Path) -> Any:
    put(d / "f")
    (d / "dir").mkdir()
    return (
        outcome(os.open, d / "f", os.O_RDONLY | os.O_DIRECTORY),
        outcome(os.open, d / "f" / "below", os.O_RDONLY),
        outcome(os.open, d / "dir", os.O_WRONLY),
        outcome(os.open, d / "dir", os.O_RDWR | os.O_CREAT),
        outcome(os.listdir, d / "f"),
    )


@operation
def append(d: Path) -> Any:
    flags = os.O_CREAT | os.O_APPEND | os.O_RDWR
    with opened(d / "f", flags) as one, opened(d / "f", flags) as other:
        for number in range(5):
            os.write(one, b"one%d" % number)
            os.write(other, b"other%d" % number)
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"end")
        return os.pread(one, 100, 0), os.lseek(one, 0, os.SEEK_CUR)


@operation
def append_from_a_shell(d: Path) -> Any:
    command = "for i in 1 2 3; do echo line $i >> log; (echo sub $i) >> log; done; cat < log; wc -c < log"
    return subprocess.run(["sh", "-c", command], cwd=d, capture_output=True, check=True).stdout


@operation
def write_out_of_order_and_seek_back(d: Path) -> Any:
    with open(d / "f", "w+b") as f:
        f.write(bytes(16))
        f.write(b"body" * 1000)
        f.seek(1 << 20)
        f.write(b"tail")
        f.seek(0)
        f.write(b"header at last..")
        f.seek(500_000)
        f.write(b"middle")
    with opened(d / "f", os.O_RDWR) as fd:
        os.pwrite(fd, b"second", 600_000)
        os.pwritev(fd, [b"a" * 5000, b"b" * 5000], 4090)
        return (
            os.fstat(fd).st_size,
            os.pread(fd, 20, 4090 + 4990),
            os.pread(fd, 10, 2 << 20),
            os.preadv(fd, [bytearray(9)], 0),
        )


@operation
def truncate(d: Path) -> Any:
    put(d / "f", b"x" * 10_000)
    (d / "dir").mkdir()
    with opened(d / "f", os.O_RDWR) as fd:
        os.ftruncate(fd, 100)
        os.ftruncate(fd, 5000)
        grown = os.pread(fd, 200, 50)
        os.truncate(d / "f", 4000)
        seen = os.fstat(fd).st_size
    with opened(d / "f", os.O_RDONLY) as fd:
        refused = outcome(os.ftruncate, fd, 1)
    return (
        grown, seen, refused,
        outcome(os.truncate, d / "dir", 0), outcome(os.truncate, d / "missing", 0), outcome(os.truncate, d / "f", -1),
    )  # fmt: skip


@operation
def truncate_at_open(d: Path) -> Any:
    put(d / "f")
    with opened(d / "f", os.O_RDWR) as old, opened(d / "f", os.O_WRONLY | os.O_TRUNC) as new:
        os.write(new, b"abc")
        return os.pread(old, 100, 0), os.fstat(old).st_size


@operation
def unlink_an_open_file(d: Path) -> Any:
    put(d / "f")
    with opened(d / "f", os.O_RDWR) as fd:
        os.unlink(d / "f")
        os.pwrite(fd, b"still", 3)
        os.ftruncate(fd, 9)
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(10**18, 10**18))
        status = os.fstat(fd)
        put(d / "f", b"another")
        return os.pread(fd, 100, 0), status.st_nlink, oct(status.st_mode), status.st_mtime_ns, os.fstat(fd).st_size


@operation
def share_an_open_file_with_children(d: Path) -> Any:
    with open(d / "f", "wb") as f:
        f.write(b"parent ")
        f.flush()
        subprocess.run(["sh", "-c", "printf child"], stdout=f, check=True)
        copy = os.dup(f.fileno())
    os.write(copy, b" after")
    os.close(copy)
    return (d / "f").read_bytes()


@operation
def reopen_by_proc(d: Path) -> Any:
    put(d / "f")
    with opened(d / "f", os.O_RDONLY) as fd, opened(Path(f"/proc/self/fd/{fd}"), os.O_RDWR) as again:
        os.write(again, b"abc")
        return os.pread(fd, 10, 0)


@operation
def fsync(d: Path) -> Any:
    (d / "sub").mkdir()
    with opened(d / "sub" / "f", os.O_CREAT | os.O_RDWR | os.O_SYNC) as fd:
        os.write(fd, b"x" * 100_000)
        results = [outcome(os.fsync, fd), outcome(os.fdatasync, fd)]
    for directory in (d, d / "sub"):
        with opened(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
            results += [outcome(os.fsync, fd), outcome(os.fdatasync, fd)]
    return results


@operation
def flock(d: Path) -> Any:
    put(d / "f")
    with opened(d / "f", os.O_RDWR) as one, opened(d / "f", os.O_RDWR) as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        results = [outcome(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)]
        fcntl.flock(one, fcntl.LOCK_SH)
        results.append(outcome(fcntl.flock, other, fcntl.LOCK_SH | fcntl.LOCK_NB))
    with opened(d / "f", os.O_RDWR) as later:
        return [*results, outcome(fcntl.flock, later, fcntl.LOCK_EX | fcntl.LOCK_NB)]


@operation
def lock_by_open_file_description(d: Path) -> Any:
    put(d / "f")
    f_ofd_setlk = 37
    everything = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    part = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 5, 2, 0)
    with opened(d / "f", os.O_RDWR) as one, opened(d / "f", os.O_RDWR) as other:
        results = [outcome(fcntl.fcntl, one, f_ofd_setlk, part)]
        results += [
            outcome(fcntl.fcntl, other, f_ofd_setlk, everything),
            outcome(fcntl.lockf, one, fcntl.LOCK_EX, 1, 0),
        ]
    with opened(d / "f", os.O_RDWR) as later:
        return [*results, outcome(fcntl.fcntl, later, f_ofd_setlk, everything)]


@operation
def map_shared_and_private(d: Path) -> Any:
    put(d / "f", b"a" * 10_000)
    with opened(d / "f", os.O_RDWR) as fd:
        shared = mmap.mmap(fd, 10_000)
        private = mmap.mmap(fd, 10_000, access=mmap.ACCESS_COPY)
    shared[5000:5005] = b"hello"  # the descriptor is closed
    private[0:3] = b"own"
    shared.flush()
    seen = (d / "f").read_bytes()[4999:5006]
    with opened(d / "f", os.O_RDWR) as fd:
        os.pwrite(fd, b"written", 8000)
    result = seen, shared[8000:8007], private[0:4], shared[0:4]
    shared.close()
    private.close()
    return result


@operation
def write_by_a_mapping_that_outlives_its_file(d: Path) -> Any:
    put(d / "f", b"a" * 8192)
    with opened(d / "f", os.O_RDWR) as fd:
        mapping = mmap.mmap(fd, 8192)
    os.rename(d / "f", d / "g")
    mapping[0:2] = b"zz"
    mapping.flush()
    result = (d / "g").read_bytes()[:4]
    os.unlink(d / "g")
    mapping[4096:4098] = b"yy"
    mapping.flush()
    result += mapping[4095:4099]
    mapping.close()
    return result


@operation
def copy_by_the_kernel(d: Path) -> Any:
    put(d / "source", bytes(range(256)) * 4000)
    with opened(d / "source", os.O_RDONLY) as source, opened(d / "sent", os.O_CREAT | os.O_WRONLY) as target:
        sent = 0
        while step := os.sendfile(target, source, sent, 1 << 20):
            sent += step
    with opened(d / "source", os.O_RDONLY) as source, opened(d / "ranged", os.O_CREAT | os.O_WRONLY) as target:
        ranged = 0
        while step := os.copy_file_range(source, target, 1 << 20):
            ranged += step
    shutil.copy2(d / "source", d / "copied")
    return sent, ranged, (d / "copied").stat().st_mtime_ns == (d / "source").stat().st_mtime_ns


@operation
def use_temporary_files(d: Path) -> Any:
    with tempfile.TemporaryFile(dir=d) as f:
        f.write(b"gone")
        f.seek(0)
        read = f.read()
    with tempfile.NamedTemporaryFile(dir=d, delete=False) as named:
        named.write(b"kept")
    os.replace(named.name, d / "kept")
    with tempfile.TemporaryDirectory(dir=d) as directory:
        put(Path(directory) / "f")
    return read, os.listdir(d)


@operation
def reserve_space(d: Path) -> Any:
    with opened(d / "f", os.O_CREAT | os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 100_000)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.fstat(fd).st_size, os.pread(fd, 4, 99_000)


@operation
def write_from_many_threads(d: Path) -> Any:
    def work(number: int) -> None:
        for turn in range(10):
            put(d / f"{number}-{turn}.tmp", b"%d" % turn * 5000)
            os.rename(d / f"{number}-{turn}.tmp", d / f"{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    return sorted(os.listdir(d))


@pytest.mark.parametrize("program", operation, ids=lambda program: program.__name__)
def test_a_file_behaves_as_in_a_plain_directory(program: Operation, shared: Mount, tmp_path: Path) -> None:
    """S1: All of POSIX that training code was ever seen to use works, with the errno of a local disk."""
    compare(program, shared.path / program.__name__, tmp_path / "plain")


@pytest.mark.parametrize("size", [4096, 100], ids=["aligned", "unaligned"])
def test_o_direct_is_refused_or_works_as_in_a_plain_directory(shared: Mount, tmp_path: Path, size: int) -> None:
    """S1: O_DIRECT works, with the errno of a local disk."""

    def program(d: Path) -> Any:
        try:
            with opened(d / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, 8192) as buffer:
                buffer[:8192] = b"d" * 8192
                os.write(fd, memoryview(buffer)[:size])
        except OSError as exc:
            return exc.errno
        return (d / "direct").read_bytes()

    d = shared.path / f"direct-{size}"
    d.mkdir()
    found = program(d)
    assert found in (program(tmp_path), 22, b"d" * size)
    if size == 4096:
        assert found == b"d" * 4096
