"""A file that was half fetched is gone on with, and nothing false with it."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from fuse_ckpt.errors import CorruptBlob, StorageFailed
from fuse_ckpt.model import Kind
from fuse_ckpt.sharing import PartFile, SharedStore, group_of, half_made
from fuse_ckpt.sharing.partial import Partial
from fuse_ckpt.transfer import Found, Remote, Stop
from tests.sharing.conftest import JOB

RANGE = 8 << 20
RANGES = 6
AT_ONCE = 4  # ranges that are asked for ahead; what a kill finds on its way comes again


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(1).randbytes(RANGES * RANGE - 1000)


class Counted(Remote):
    """Counts the bytes that are read; fails at one range, once."""

    fails_at: int | None = None
    read_bytes = 0

    def _part(self, found: Found, start: int, end: int) -> memoryview:
        if start == self.fails_at:
            self.fails_at = None
            raise StorageFailed("it is gone")
        self.read_bytes += end - start
        return super()._part(found, start, end)


@pytest.fixture
def counted(remote: Remote) -> Counted:
    remote.__class__ = Counted
    assert isinstance(remote, Counted)
    return remote


@pytest.fixture
def file(counted: Counted, shared: SharedStore, data: bytes, tmp_path: Path) -> PartFile:
    source = tmp_path / "source"
    source.write_bytes(data)
    digest = blake3(data).hexdigest()
    key = shared.put_data(JOB, group_of(JOB, "0", "a", 1), 0, source, len(data), digest)
    counted.read_bytes = 0
    return PartFile("x", Kind.FILE, 0o644, 1, len(data), digest, key=key)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "x"


def cut_off(shared: SharedStore, counted: Counted, file: PartFile, out: Path, ranges: int) -> None:
    counted.fails_at = ranges * RANGE
    with pytest.raises(StorageFailed, match="gone"):
        shared.fetch_file(JOB, file, out)
    assert half_made(out) == ranges * RANGE
    assert not out.exists()
    counted.read_bytes = 0


def test_a_fetch_goes_on_where_the_one_before_it_was_cut_off(
    shared: SharedStore, counted: Counted, file: PartFile, out: Path, data: bytes
) -> None:
    cut_off(shared, counted, file, out, 3)
    told: list[int] = []
    shared.fetch_file(JOB, file, out, told.append)
    assert out.read_bytes() == data
    assert (out.stat().st_mode & 0o777, os.listdir(out.parent)) == (0o600, ["x"])
    assert sum(told) == len(data)
    assert counted.read_bytes == len(data) - 3 * RANGE


def damaged(path: Path, at: int) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\0" * 100)


@pytest.mark.parametrize(
    ("harm", "kept"),
    [
        (lambda part, ranges: os.truncate(part, 2 * RANGE + 5), 2),
        (lambda part, ranges: os.truncate(ranges, 32 + 20 + 3), 1),
        (lambda part, ranges: damaged(part, RANGE + 7), 1),
        (lambda part, ranges: damaged(ranges, 40), 0),
        (lambda part, ranges: ranges.unlink(), 0),
        (lambda part, ranges: part.write_bytes(b""), 0),
        (lambda part, ranges: ranges.write_bytes(os.urandom(32 + 20 * 9)), 0),
        (lambda part, ranges: ranges.write_bytes(ranges.read_bytes()[:32] + b"\xff" * 20), 0),
    ],
    ids=["cut", "torn", "damaged", "record", "no record", "no bytes", "another's", "absurd"],
)
def test_only_ranges_that_still_have_their_digest_are_gone_on_with(
    shared: SharedStore,
    counted: Counted,
    file: PartFile,
    out: Path,
    data: bytes,
    harm: Callable[[Path, Path], None],
    kept: int,
) -> None:
    cut_off(shared, counted, file, out, 3)
    harm(out.with_name("x.part"), out.with_name("x.ranges"))
    shared.fetch_file(JOB, file, out)
    assert out.read_bytes() == data
    assert counted.read_bytes == len(data) - kept * RANGE


def test_what_an_earlier_fetch_brought_wrong_is_fetched_anew(
    shared: SharedStore, counted: Counted, file: PartFile, out: Path, data: bytes
) -> None:
    with Partial(out, file.digest, lambda count: None) as partial:
        partial.add(memoryview(data[: RANGE - 1] + b"?"))
    shared.fetch_file(JOB, file, out)
    assert out.read_bytes() == data
    assert counted.read_bytes == 2 * len(data) - RANGE


def test_of_what_is_damaged_there_nothing_is_kept(
    shared: SharedStore, counted: Counted, file: PartFile, out: Path, data: bytes
) -> None:
    cut_off(shared, counted, file, out, 2)
    counted.put(shared.place.key(f"j/{JOB}/{file.key}"), data[:-1] + b"?")
    with pytest.raises(CorruptBlob, match="damaged"):
        shared.fetch_file(JOB, file, out)
    assert os.listdir(out.parent) == []


def test_a_full_disk_is_given_back_what_was_fetched(out: Path) -> None:
    def fill() -> None:
        with Partial(out, "ab" * 32, lambda count: None) as partial:
            partial.add(memoryview(b"1" * RANGE))
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fill()
    assert os.listdir(out.parent) == []


def test_reading_ahead_is_bounded(counted: Counted, shared: SharedStore, file: PartFile) -> None:
    """A kill costs what is on its way, at most."""
    reading = counted.read(Found(shared.place.key(f"j/{JOB}/{file.key}"), file.size, 0), Stop())
    next(iter(reading))
    assert counted.read_bytes <= AT_ONCE * RANGE
