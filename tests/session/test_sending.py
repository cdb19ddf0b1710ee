"""Copying to an object store and fetching from it, cut off at any step, and done again by somebody else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import msgspec
import pytest
from msgspec.structs import replace

from fuse_ckpt.errors import Busy, CorruptBlob, StorageFailed, UsageError
from fuse_ckpt.faults import install
from fuse_ckpt.model import Checkpoint, Connection, Provider, Replication, Stage
from fuse_ckpt.session import Synced, attach, bring, detach, sync
from fuse_ckpt.session.pace import Left, Pace
from fuse_ckpt.session.sending import Sender
from fuse_ckpt.session.shared import shared_store
from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.sharing.documents import written
from fuse_ckpt.store import Store, rebuild
from tests.store.conftest import commit

BYTES = {"weights": b"w" * 100_000, "config": b"{}", "empty": b""}
Machines = Callable[[], Store]


class Crash(Exception):
    """The process dies here."""


def crash_at(point: str) -> Callable[[str], None]:
    def hook(reached: str) -> None:
        if reached == point:
            raise Crash

    return hook


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Stores that are attached to one object store, a directory."""
    made: list[Store] = []
    (tmp_path / "archive").mkdir()

    def make() -> Store:
        store = Store.open(tmp_path / f"machine{len(made)}")
        made.append(store)
        store.add_connection(Connection("lake", Provider.FILE, 1, root=str(tmp_path / "archive")))
        attach(store, "lake", {})
        return store

    yield make
    for store in made:
        assert store.verify() == []
        store.close()


@pytest.fixture
def store(machines: Machines) -> Store:
    return replicating(machines())


def replicating(store: Store, rank: int = 0, nodes: int = 1) -> Store:
    store.ensure_job("job", 1)
    store.replicate("job", Replication("lake", rank, nodes, "x"))
    return store


def shared(store: Store) -> SharedStore:
    return shared_store(store, store.connection("lake"), {}, 1.0)


def sender(store: Store, pace: Pace | None = None) -> Sender:
    return Sender(store, "lake", shared(store), pace or Pace(None, Event()))


def stage(store: Store, found: Checkpoint) -> Stage | None:
    replica = store.replica(found.id)
    return None if replica is None else replica.stage


def objects(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "archive").rglob("*") if path.is_file() and "/d/" in str(path)]


@pytest.mark.parametrize(
    "point", ["share:data", "share:data:sent", "replicate:settle", "replicate:part", "replicate:note", "share:decide"]
)
def test_a_copy_that_was_cut_off_is_gone_on_with(store: Store, machines: Machines, tmp_path: Path, point: str) -> None:
    """S24: what was cut off is never listed anywhere as a checkpoint."""
    found = commit(store, "a", BYTES)
    with install(crash_at(point)), pytest.raises(Crash):
        sender(store).send(found.id)
    assert stage(store, found) in (Stage.WAITING, Stage.UPLOADING)
    assert machines().checkpoints() == []
    done = sync(store, "lake", {})
    assert (done.copied, done.left) == (1, {})
    assert stage(store, found) is Stage.REPLICATED
    assert len(objects(tmp_path)) == 2, "an empty file needs no object, and no other is there twice"
    other = machines()
    (listed,) = other.checkpoints()
    assert (listed.id, listed.size, listed.remote) == (found.id, found.size, "lake")
    assert bring(other, listed, {}).remote is None
    assert {one.path: one.digest for one in other.manifest(found.id).entries} == {
        one.path: one.digest for one in store.manifest(found.id).entries
    }


def test_bytes_that_are_there_are_not_sent_again(store: Store, tmp_path: Path) -> None:
    commit(store, "a", BYTES)
    sync(store, "lake", {})
    commit(store, "b", {**BYTES, "step": b"2"})
    sync(store, "lake", {})
    assert len(objects(tmp_path)) == 3


def test_what_another_machine_deleted_is_sent_again_for_what_needs_it(store: Store, tmp_path: Path) -> None:
    first = commit(store, "a", BYTES)
    sync(store, "lake", {})
    replica = store.replica(first.id)
    assert replica is not None
    shared(store).tombstone("job", replica.group, time.time_ns())
    second = commit(store, "b", BYTES)
    assert sync(store, "lake", {}).copied == 1
    assert shared(store).delete("job", [replica.group], grace_ns=0) == [replica.group]
    shared(store).read("job", (store.replica(second.id) or replica).group)
    assert len(objects(tmp_path)) == 2


def test_what_is_amended_while_it_is_sent_is_sent_as_it_is_then(store: Store, machines: Machines) -> None:
    from tests.store.test_outbox import amend

    found = commit(store, "a", BYTES)

    def late(point: str) -> None:
        if point == "replicate:settle" and store.checkpoint(found.id).revision == 1:
            assert amend(store, found, "late") is not None

    with install(late):
        sync(store, "lake", {})
    (listed,) = machines().checkpoints()
    assert (listed.files, store.checkpoint(found.id).revision) == (4, 2)
    assert amend(store, store.checkpoint(found.id), "later") is None, "what others may have read changes no more"


def test_what_is_deleted_while_it_is_sent_is_sent_no_more(store: Store, machines: Machines) -> None:
    found = commit(store, "a", BYTES)

    def gone(point: str) -> None:
        if point == "replicate:settle":
            store.delete([found.id])

    with install(gone):
        assert sync(store, "lake", {}).left == {found.id: "given up"}
    assert machines().checkpoints() == []


def test_a_damaged_blob_does_not_leave_the_machine(tmp_path: Path, machines: Machines) -> None:
    store = replicating(machines())
    found = commit(store, "a", {"weights": b"right"})
    path = store.blob_path(store.manifest(found.id).entries[0].digest)
    path.write_bytes(b"wrong")
    assert sync(store, "lake", {}).left == {found.id: "given up"}
    path.write_bytes(b"right")
    assert objects(tmp_path) == []


def test_damaged_bytes_from_there_are_not_taken(store: Store, machines: Machines, tmp_path: Path) -> None:
    commit(store, "a", {"weights": b"right"})
    sync(store, "lake", {})
    (path,) = [one for one in (tmp_path / "archive").rglob("*") if one.is_file() and "/d/" in str(one)]
    path.write_bytes(b"wrong")
    other = machines()
    with pytest.raises(CorruptBlob):
        bring(other, other.checkpoints()[0], {})
    assert other.checkpoints()[0].remote == "lake"
    assert list(other.layout.blobs.glob("*/*")) == list(other.layout.incoming.iterdir()) == []


def test_fetching_that_was_cut_off_is_gone_on_with(store: Store, machines: Machines) -> None:
    commit(store, "a", BYTES)
    sync(store, "lake", {})
    other = machines()
    (listed,) = other.checkpoints()
    with install(crash_at("bring:receive")), pytest.raises(Crash):
        bring(other, listed, {})
    assert other.checkpoint(listed.id).remote == "lake"
    digest = other.manifest(listed.id).entries[0].digest
    half_made, old = (other.layout.incoming / f"fetch-{one}" for one in (digest, "0" * 64))
    for path in (half_made, old):
        path.mkdir(exist_ok=True)
        (path / "bytes.part").write_bytes(b"half")
    os.utime(old, (1, 1))
    other.recover()
    told: list[tuple[int, int]] = []
    bring(other, listed, {}, progress=lambda done, total: told.append((done, total)))
    assert other.checkpoint(listed.id).remote is None
    assert told[-1][0] == told[-1][1]
    assert list(other.layout.incoming.iterdir()) == []


def test_what_was_fetched_before_its_process_died_is_not_fetched_again(
    store: Store, machines: Machines, tmp_path: Path
) -> None:
    found = commit(store, "a", {"weights": b"w" * 1000})
    sync(store, "lake", {})
    other = machines()
    (listed,) = other.checkpoints()
    with install(crash_at("bring:receive")), pytest.raises(Crash):
        bring(other, listed, {})
    (there,) = [one for one in (tmp_path / "archive").rglob("*") if one.is_file() and "/d/" in str(one)]
    there.unlink()
    assert bring(other, listed, {}).remote is None
    assert other.manifest(found.id).entries == store.manifest(found.id).entries
    assert list(other.layout.incoming.iterdir()) == []


def test_what_a_person_deletes_goes_there_too_and_from_other_machines(store: Store, machines: Machines) -> None:
    """S26: what a person deletes goes there, too, once it is out of the trash."""
    other = machines()
    found = commit(store, "a", BYTES)
    sync(store, "lake", {})
    sync(other, "lake", {})
    assert [one.id for one in other.checkpoints()] == [found.id]
    store.delete([found.id])
    assert sync(other, "lake", {}).new == 0
    assert len(other.checkpoints()) == 1, "it can be restored yet"
    with store.collecting("a test"):
        store.collect([found.id])
    sync(store, "lake", {})
    sync(other, "lake", {})
    assert store.checkpoints() == other.checkpoints() == []
    assert stage(store, found) is Stage.REMOVING, "its bytes stay for a while"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_checkpoint_of_many_nodes(machines: Machines, order: tuple[int, ...]) -> None:
    nodes = [replicating(machines(), rank, 3) for rank in range(3)]
    for rank in order:
        commit(nodes[rank], "step-1", {f"shard-{rank}": b"%d" % rank, "same": b"s"}, node=str(rank))
        done = sync(nodes[rank], "lake", {})
        assert rank == order[-1] or next(iter(done.left.values())).startswith("partial")
    for node in nodes:
        sync(node, "lake", {})
    found = {tuple((one.id, one.files, one.node) for one in node.checkpoints()) for node in nodes}
    assert len(found) == 1
    ((((_, files, names)),),) = (next(iter(found)),)
    assert (files, names) == (4, "0,1,2")
    whole = bring(nodes[0], nodes[0].checkpoints()[0], {})
    assert sorted(one.path for one in nodes[0].manifest(whole.id).entries) == ["same", "shard-0", "shard-1", "shard-2"]


def test_a_decision_that_names_a_checkpoint_which_is_no_part_of_it_takes_nothing_over(machines: Machines) -> None:
    nodes = [replicating(machines(), rank, 2) for rank in range(2)]
    for rank, node in enumerate(nodes):
        commit(node, "step-1", {f"shard-{rank}": b"x"})
        sync(node, "lake", {})
    other = machines()
    mine = commit(other, "mine", {"weights": b"mine"})
    (decision,) = shared(nodes[0]).list("job")
    forged = msgspec.structs.replace(
        decision, id=decision.id[:-4] + "0000", group="000000000009-00000000000000ff",
        parts=tuple(msgspec.structs.replace(part, local=mine.id) for part in decision.parts),
    )  # fmt: skip
    place = Path(str(other.connection("lake").root)) / "fuse-ckpt/j/job/c" / f"{forged.group}.json"
    place.write_bytes(written(forged))
    sync(other, "lake", {})
    assert {decision.id, forged.id, mine.id} <= {one.id for one in other.checkpoints()}
    assert other.checkpoint(mine.id).remote is None
    assert [one.digest for one in other.manifest(mine.id).entries]


def test_a_rank_that_was_there_before_with_other_bytes_is_not_overwritten(machines: Machines) -> None:
    for data, stage_then in ((b"first", "partial"), (b"second", "given up")):
        node = replicating(machines(), 0, 2)
        commit(node, "step-1", {"shard": data})
        assert next(iter(sync(node, "lake", {}).left.values())).startswith(stage_then)


def test_leaving_and_coming_back(store: Store, machines: Machines) -> None:
    other = machines()
    found = commit(store, "a", BYTES)
    with pytest.raises(Busy):
        detach(store, "lake")
    sync(store, "lake", {})
    sync(other, "lake", {})
    assert detach(other, "lake") == (1, 0)
    assert other.checkpoints() == []
    with pytest.raises(UsageError):
        sync(other, "lake", {})
    assert attach(other, "lake", {}).new == 1
    assert [one.id for one in other.checkpoints()] == [found.id]
    with pytest.raises(UsageError):
        attach(other, "lake", {}, path="elsewhere")


def test_one_process_copies_at_a_time(store: Store) -> None:
    lock = store.lock_upload("lake")
    assert lock is not None
    with lock, pytest.raises(Busy):
        sync(store, "lake", {})
    assert sync(store, "lake", {}) == Synced(0, 0, {}, 0)


def test_a_new_index_knows_what_was_copied_and_what_waits(store: Store, tmp_path: Path) -> None:
    first = commit(store, "a", BYTES)
    sync(store, "lake", {})
    second = commit(store, "b", BYTES)
    store.close()
    rebuild(store.layout.root)
    with Store.open(store.layout.root) as again:
        assert again.connection("lake").attached == "fuse-ckpt"
        assert (stage(again, first), stage(again, second)) == (Stage.REPLICATED, Stage.WAITING)


def test_what_has_no_copy_cannot_be_fetched(store: Store) -> None:
    found = commit(store, "a", BYTES)
    with pytest.raises(StorageFailed):
        bring(store, replace(found, remote="lake"), {})


def test_bytes_go_as_fast_as_they_may(tmp_path: Path) -> None:
    now = [0.0]
    waited: list[float] = []

    class Waiting(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return self.is_set()

    stop = Waiting()
    pace = Pace(1000, stop, lambda: now[0])
    for _ in range(3):
        pace.let_go(500)
    assert waited == [0.0, 0.5, 1.0]
    now[0] = 10.0
    pace.let_go(1)
    assert waited[-1] == 0.0
    stop.set()
    with pytest.raises(Left):
        pace.let_go(1)
    assert pace.done == 1502


def test_a_copy_under_way_is_left_when_it_is_told_to(store: Store) -> None:
    found = commit(store, "a", {"weights": b"w" * 100_000})
    stop = Event()
    left: list[Left] = []
    pace = Pace(1, stop)
    pace.let_go(60)  # and the next byte may go in a minute

    def work() -> None:
        try:
            sender(store, pace).send(found.id)
        except Left as error:
            left.append(error)

    thread = Thread(target=work)
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert len(left) == 1
    assert stage(store, found) in (Stage.WAITING, Stage.UPLOADING)
