"""Checkpoints that lie in an object store alone, from Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fuse_ckpt
from fuse_ckpt.errors import CorruptBlob, StorageFailed, UnknownFile
from fuse_ckpt.model import Connection, Provider, Replication
from fuse_ckpt.session import attach, sync
from fuse_ckpt.store import Store
from tests.store.conftest import commit

FILES = {"model.pt": b"m" * 1000, "sub/model.pt": b"another", "optimizer.pt": b"o" * 5000}


def attached(root: Path, archive: Path) -> Store:
    store = Store.open(root)
    store.add_connection(Connection("lake", Provider.FILE, 1, root=str(archive)))
    attach(store, "lake", {})
    return store


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A directory that holds one checkpoint of another machine's."""
    (tmp_path / "archive").mkdir()
    with attached(tmp_path / "here", tmp_path / "archive") as store:
        store.ensure_job("job", 1)
        store.replicate("job", Replication("lake"))
        commit(store, "a", FILES)
        assert sync(store, "lake", {}).copied == 1
    return tmp_path / "archive"


@pytest.fixture
def there(tmp_path: Path, archive: Path) -> Iterator[fuse_ckpt.CheckpointStore]:
    """A store that lists it, and has none of its bytes."""
    attached(tmp_path / "there", archive).close()
    with fuse_ckpt.open_store(tmp_path / "there") as opened:
        yield opened


def blobs(store: fuse_ckpt.CheckpointStore) -> int:
    return len(list((store.root / "blobs").glob("*/*")))


def test_a_file_is_fetched_when_it_is_opened_and_no_other(there: fuse_ckpt.CheckpointStore) -> None:
    (found,) = there.list("job")
    assert (found.size, blobs(there)) == (6007, 0)
    assert {file.path for file in found.files} == set(FILES)
    assert blobs(there) == 0
    for _ in range(2):
        with there.open(found, "model.pt") as file:
            assert file.read() == FILES["model.pt"]
        assert blobs(there) == 1
    assert there.path("job/a", "sub/model.pt").read_bytes() == b"another"
    assert blobs(there) == 2
    with pytest.raises(UnknownFile):
        there.open(found, "none")


def test_what_is_fetched_stays_although_another_checkpoint_brought_it(
    there: fuse_ckpt.CheckpointStore, tmp_path: Path
) -> None:
    there.fetch("job/a", tmp_path / "out", include=["model.pt"])
    assert blobs(there) == 2
    there.fetch("job/a", tmp_path / "all")
    assert {path: (tmp_path / "all" / path).read_bytes() for path in FILES} == FILES
    there.close()
    with Store.open(tmp_path / "there") as store:
        (found,) = store.checkpoints()
        assert (found.remote, store.verify()) == (None, [])


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), CorruptBlob),
        (lambda path: path.unlink(), StorageFailed),
    ],
    ids=["damaged", "gone"],
)
def test_what_cannot_be_fetched_is_an_error_of_the_open(
    there: fuse_ckpt.CheckpointStore, archive: Path, harm: Callable[[Path], None], error: type[Exception]
) -> None:
    (found,) = there.list()
    digest = next(file.digest for file in found.files if file.path == "model.pt")
    (path,) = archive.rglob(digest)
    harm(path)
    with pytest.raises(error):
        there.open(found, "model.pt")
    with there.open(found, "optimizer.pt") as file:
        assert len(file.read()) == 5000
    assert blobs(there) == 1
