"""The uploader between its turns: what goes wrong is said once, noted, and tried again later."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from fuse_ckpt.model import Connection, Provider, Replication, Stage
from fuse_ckpt.session import attach, uploader
from fuse_ckpt.session.cataloguing import Appending
from fuse_ckpt.session.pace import Left, Pace
from fuse_ckpt.session.uploader import Uploader
from fuse_ckpt.store import Store
from tests.store.conftest import commit


class Clock:
    """A monotonic clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(uploader, "time", clock)
    return clock


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.mkdir()
    return path


@pytest.fixture
def store(tmp_path: Path, archive: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        store.add_connection(Connection("lake", Provider.FILE, 1, root=str(archive)))
        attach(store, "lake", {})
        store.ensure_job("job", 1)
        store.replicate("job", Replication("lake"))
        yield store


@pytest.fixture
def one(store: Store) -> Uploader:
    return Uploader(store, {}, Pace(None, Event()))


def turns(uploader: Uploader) -> int:
    """Turns until there is nothing to do."""
    count = 0
    while uploader._turn():
        count += 1
    return count


def test_the_newest_goes_first(store: Store, one: Uploader, clock: Clock) -> None:
    first, second = commit(store, "a", {"a": b"1"}), commit(store, "b", {"b": b"2"})
    assert one._turn()
    replicas = store.replicas([first.id, second.id])
    assert [replicas[each.id].stage for each in (first, second)] == [Stage.WAITING, Stage.REPLICATED]
    assert turns(one) == 1
    assert store.outbox() == {}


def test_an_object_store_that_is_gone_is_said_once_and_tried_again(
    store: Store, one: Uploader, clock: Clock, archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = commit(store, "a", {"a": b"1"})
    away = archive.rename(archive.with_name("away"))
    tries = 0
    for _ in range(2000):
        failures = one._lines["lake"]._failures if "lake" in one._lines else 0
        assert not one._turn()
        tries += one._lines["lake"]._failures - failures
        clock.now += 1.0
    assert 8 < tries < 40, "with growing pauses: five minutes at most"
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    replica = store.replica(found.id)
    assert replica is not None
    assert "the directory is not there" in str(replica.reason)
    away.rename(archive)
    clock.now += 300.0
    assert one._turn()
    replica = store.replica(found.id)
    assert (replica and replica.stage, replica and replica.reason) == (Stage.REPLICATED, None)
    assert caplog.records[-1].getMessage() == "lake answers again"


def test_a_connection_that_another_process_copies_to_is_left_to_it(store: Store, one: Uploader, clock: Clock) -> None:
    commit(store, "a", {"a": b"1"})
    lock = store.lock_upload("lake")
    assert lock is not None
    with lock:
        assert turns(one) == 0
    assert turns(one) == 1


def test_a_group_that_is_not_decided_is_looked_at_less_and_less_often(
    store: Store, one: Uploader, clock: Clock
) -> None:
    store.replicate("job", Replication("lake", 0, 2, "x"))
    found = commit(store, "a", {"a": b"1"})
    assert turns(one) == 1
    looks = 0
    for _ in range(600):
        clock.now += 1.0
        looks += turns(one)
    assert 5 < looks < 25
    replica = store.replica(found.id)
    assert replica is not None
    assert replica.words == "partial 1/2 (missing rank 1)"


def test_bytes_of_what_is_deleted_go_from_there(store: Store, one: Uploader, clock: Clock, archive: Path) -> None:
    found = commit(store, "a", {"a": b"1"})
    turns(one)
    store.delete([found.id])
    with store.collecting("a test"):
        store.collect([found.id])
    turns(one)
    assert [path.parent.name for path in archive.rglob("x/*.json")] == ["x"]
    assert store.outbox()[found.id].stage is Stage.REMOVING, "its bytes stay for an hour"


def test_it_ends_when_it_is_told_to(store: Store) -> None:
    stop = Event()
    stop.set()
    with pytest.raises(Left):
        Uploader(store, {}, Pace(None, stop)).run()


def test_of_the_nodes_of_a_checkpoint_rank_0_sees_to_the_catalog(
    store: Store, tmp_path: Path, archive: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = []
    monkeypatch.setattr(Appending, "add", lambda rows, job, group: added.append((rows, job)))
    with Store.open(tmp_path / "other") as other:
        other.add_connection(Connection("lake", Provider.FILE, 1, root=str(archive)))
        attach(other, "lake", {})
        nodes = [Uploader(each, {}, Pace(None, Event())) for each in (store, other)]
        for rank, each in enumerate((store, other)):
            each.ensure_job("job", 1)
            each.replicate("job", Replication("lake", rank, 2, "x"))
            commit(each, "a", {f"rank-{rank}": b"1"})
            turns(nodes[rank])
        assert added == [], "rank 1 has decided"
        clock.now += 60.0
        turns(nodes[0])
        assert added == [(nodes[0]._lines["lake"].rows, "job")]
        assert store.outbox() == other.outbox() == {}
