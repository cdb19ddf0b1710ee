"""What is in no checkpoint leaves the store, too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_ckpt.errors import FuseCkptError, UnknownJob, UsageError
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Fetched, fetch_loose, places


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        store.ensure_job("job", 1)
        work = store.layout.work("job")
        (work / "logs" / "deep").mkdir(parents=True)
        (work / "logs" / "deep" / "train.log").write_bytes(b"line\n")
        os.utime(work / "logs" / "deep" / "train.log", ns=(5, 7))
        (work / "logs" / "deep" / "train.log").chmod(0o640)
        os.symlink("train.log", work / "logs" / "newest")
        os.mkfifo(work / "pipe")
        yield store


def test_files_are_copied_with_their_times_and_modes(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    assert fetch_loose(store, "job", out) == Fetched(out, 2, 5)
    status = (out / "logs/deep/train.log").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns, status.st_size) == (0o640, 7, 5)
    assert os.readlink(out / "logs/newest") == "train.log"
    assert sorted(os.listdir(out)) == ["logs"]
    assert os.listdir(out.parent) == ["out"]


def test_an_empty_destination_is_written_into_and_another_is_not(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fetch_loose(store, "job", out)
    with pytest.raises(UsageError, match="choose another --destination"):
        fetch_loose(store, "job", out)


def test_a_destination_in_the_store_or_in_a_mount_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="lies in the store"):
        fetch_loose(store, "job", store.layout.work("job") / "again")
    assert sorted(os.listdir(store.layout.work("job"))) == ["logs", "pipe"]
    monkeypatch.setattr(places, "_mounted_type", lambda real: places.FSTYPE)
    with pytest.raises(UsageError, match="lies in a mount of fuse-ckpt"):
        fetch_loose(store, "job", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_what_cannot_be_copied_leaves_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(FuseCkptError, match="out: No space left on device: make room, or choose another"):
        fetch_loose(store, "job", tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["store"]


def test_a_job_without_such_files_gives_an_empty_directory(store: Store, tmp_path: Path) -> None:
    store.ensure_job("other", 1)
    assert fetch_loose(store, "other", tmp_path / "out") == Fetched(tmp_path / "out", 0, 0)
    with pytest.raises(UnknownJob):
        fetch_loose(store, "none", tmp_path / "out2")
