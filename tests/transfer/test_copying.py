from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from fuse_ckpt.transfer import copying

STEP = 8 << 20


BEHIND = pytest.mark.parametrize("behind", [False, True])


@BEHIND
@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1, STEP, STEP + 1, 2 * STEP + 12345])
def test_the_digest_is_of_what_was_written(tmp_path: Path, size: int, behind: bool) -> None:
    data = os.urandom(size)
    (tmp_path / "source").write_bytes(data)
    seen: list[int] = []
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("w+b") as target:
        digest = copying.copy(source.fileno(), target.fileno(), size, seen.append, behind=behind)
    assert (tmp_path / "target").read_bytes() == data
    assert (digest, sum(seen)) == (blake3(data).hexdigest(), size)


@BEHIND
def test_a_source_that_is_shorter_than_it_was_gives_a_shorter_file(tmp_path: Path, behind: bool) -> None:
    (tmp_path / "source").write_bytes(b"x" * (STEP + 10))
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("w+b") as target:
        digest = copying.copy(source.fileno(), target.fileno(), 3 * STEP, behind=behind)
    assert (tmp_path / "target").stat().st_size == STEP + 10
    assert digest == blake3(b"x" * (STEP + 10)).hexdigest()


def test_a_clone_is_hashed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "clone", lambda source, target: os.pwrite(target, b"shared", 0) == 6)
    (tmp_path / "source").write_bytes(b"shared")
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("w+b") as target:
        assert copying.copy(source.fileno(), target.fileno(), 6) == blake3(b"shared").hexdigest()


def test_behind_the_writing_the_file_itself_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = copying.write_at
    monkeypatch.setattr(copying, "write_at", lambda fd, data, at: real(fd, b"y" * len(data), at))
    (tmp_path / "source").write_bytes(b"x" * STEP)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("w+b") as target:
        digest = copying.copy(source.fileno(), target.fileno(), STEP, behind=True)
    assert digest == blake3(b"y" * STEP).hexdigest()


@BEHIND
def test_an_error_of_the_disk_is_not_taken_for_one_of_the_call(
    tmp_path: Path, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    (tmp_path / "source").write_bytes(b"x" * (3 * STEP))
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("w+b") as target,
        pytest.raises(OSError, match="No space left"),
    ):
        copying.copy(source.fileno(), target.fileno(), 3 * STEP, behind=behind)
    assert [thread.name for thread in threading.enumerate() if thread.name == "hashing"] == []


def test_a_disk_that_cannot_be_read_again_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * STEP)
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb") as target,  # not for reading
        pytest.raises(OSError, match="Bad file descriptor"),
    ):
        copying.copy(source.fileno(), target.fileno(), STEP, behind=True)


def test_an_interruption_ends_the_thread_that_hashes(tmp_path: Path) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "source").write_bytes(b"x" * (3 * STEP))
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("w+b") as target,
        pytest.raises(KeyboardInterrupt),
    ):
        copying.copy(source.fileno(), target.fileno(), 3 * STEP, stop, behind=True)
    assert [thread.name for thread in threading.enumerate() if thread.name == "hashing"] == []
