"""A store in a temporary directory, and a way to save files into it as a commit would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from fuse_ckpt.model import Checkpoint, Entry, InodeKey, Kind, Metadata, NewCheckpoint, Shape, Unit
from fuse_ckpt.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with Store.open(root) as opened:
        yield opened


def commit(store: Store, name: str, files: dict[str, bytes], *, job: str = "job", **more: object) -> Checkpoint:
    """Write `files` into the job's working tree as new inodes, adopt them, publish them as one checkpoint."""
    store.ensure_job(job, 1)
    entries: list[Entry] = []
    sealed: list[tuple[InodeKey, str]] = []
    with store.committing():
        for path, data in files.items():
            source = store.layout.work(job) / f"{name}-{path}".replace("/", "_")
            source.unlink(missing_ok=True)
            source.write_bytes(data)
            adopted = store.adopt(source)
            entries.append(Entry(path, Kind.FILE, 0o644, 1, adopted.size, adopted.digest))
            sealed += [(adopted.inode, adopted.digest)] * adopted.linked
        fields = {"node": "0", "created_ns": time.time_ns(), "metadata": Metadata(), **more}
        unit = Unit(name, Shape.FLAT if name else Shape.ROOT)
        return store.publish(NewCheckpoint(job, unit, entries=tuple(entries), sealed=tuple(sealed), **fields))  # type: ignore[arg-type]


def age(root: Path) -> None:
    """Make of a store that nobody has open one of a version that replicated nothing yet."""
    newer = ("outbox", "replicas", "generations", "sent", "held")
    with lmdb.open(str(root / "index"), max_dbs=32, lock=False) as environment:
        for name in newer:
            with environment.begin(write=True) as transaction:
                transaction.drop(environment.open_db(name.encode(), txn=transaction))
    (root / "incoming").rmdir()


@pytest.fixture
def save() -> Callable[..., Checkpoint]:
    return commit
