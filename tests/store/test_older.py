"""A store that an older version has made: served as it is, also where nothing can be added to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_ckpt.errors import StoreUnusable
from fuse_ckpt.model import Checkpoint, Replication
from fuse_ckpt.store import Store
from tests.store.conftest import age

Save = Callable[..., Checkpoint]


@pytest.fixture
def old(root: Path, save: Save) -> Path:
    with Store.open(root) as store:
        save(store, "a", {"m": b"one"})
    age(root)
    return root


@pytest.fixture
def read_only(old: Path) -> Iterator[Path]:
    subprocess.run(["mount", "--bind", old, old], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", old], check=True)
    yield old
    subprocess.run(["umount", old], check=True)


@pytest.mark.mount
def test_what_an_older_version_made_is_read_where_nothing_can_be_written(read_only: Path) -> None:
    with Store.open(read_only, create=False) as store:
        (found,) = store.checkpoints()
        assert store.resolve("job/a") == found
        assert (store.outbox(), store.replica(found.id), store.replicas([found.id])) == ({}, None, {})
        assert (store.sent("lake", "job", ["ab" * 32]), store.connections()) == ({}, [])
        assert not store.is_part(found.id)
        assert store.absent(found.id) == {}
        assert [entry.path for entry in store.manifest(found.id).entries] == ["m"]
        with store.lease(found.id):
            pass
        assert store.verify() == []
        assert store.problems == []
        with pytest.raises(StoreUnusable, match="read-only"):
            store.pin(found.id)


def test_what_an_older_version_made_is_made_complete_where_it_can_be(old: Path, save: Save) -> None:
    with Store.open(old) as store:
        store.replicate("job", Replication("lake"))
        found = save(store, "b", {"m": b"two"})
        assert list(store.outbox()) == [found.id]
        assert store.verify() == []
