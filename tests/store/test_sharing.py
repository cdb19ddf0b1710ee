"""Equal bytes take room once on a filesystem that can share blocks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_ckpt.store import Store
from fuse_ckpt.store.sharing import share_blocks

MIB = 1 << 20
SIZE = 40 * MIB + 12345


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """An XFS of its own in a file."""
    if os.geteuid() != 0:
        pytest.skip("mounting a filesystem needs root")
    image, place = tmp_path / "image", tmp_path / "xfs"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def used(place: Path) -> int:
    """Bytes of the filesystem that are in use, once all is written."""
    os.sync()
    disk = os.statvfs(place)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def test_a_working_file_whose_bytes_are_in_the_store_takes_no_room(xfs: Path) -> None:
    data = os.urandom(SIZE)
    with Store.open(xfs / "store") as store:
        store.ensure_job("job", 1)
        first, second = (store.layout.work("job") / name for name in ("first", "second"))
        first.write_bytes(data)
        with store.committing():
            blob = store.adopt(first)
        second.write_bytes(data)
        os.utime(second, ns=(1, 2))
        before, status = used(xfs), second.stat()
        with store.committing():
            again = store.adopt(second)
        assert (again.digest, again.linked) == (blob.digest, False)
        assert before - used(xfs) > SIZE - MIB
        after = second.stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_size) == (status.st_ino, status.st_mtime_ns, status.st_size)
        with second.open("r+b") as file:  # it is training's own still
            file.write(b"changed")
        assert store.blob_path(blob.digest).read_bytes() == data
        assert second.read_bytes() == b"changed" + data[7:]


def test_bytes_that_differ_are_not_shared(xfs: Path) -> None:
    one, other = xfs / "one", xfs / "other"
    one.write_bytes(bytes(MIB) + b"1" * MIB)
    other.write_bytes(bytes(MIB) + b"2" * MIB)
    with one.open("rb") as source, other.open("rb") as target:
        assert share_blocks(source.fileno(), target.fileno(), 2 * MIB) == 0
    assert other.read_bytes() == bytes(MIB) + b"2" * MIB


def test_where_the_filesystem_cannot_nothing_happens(tmp_path: Path) -> None:
    one, other = tmp_path / "one", Path("/dev/shm") / f"fuse-ckpt-{os.getpid()}"
    try:
        for path in (one, other):
            path.write_bytes(b"same")
        with one.open("rb") as source, other.open("rb") as target:
            assert share_blocks(source.fileno(), target.fileno(), 4) == 0
    finally:
        other.unlink()
