"""What is remembered of copies does not grow for ever, and what goes is never missed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from fuse_ckpt.model import Checkpoint, Replication, Stage
from fuse_ckpt.session import attach, bring, detach, sync
from fuse_ckpt.store import Store
from fuse_ckpt.store.pruning import NUMBERED_NS, forget_numbers
from tests.session.test_sending import Machines, machines, objects, replicating, shared, store
from tests.store.conftest import commit

__all__ = ["machines", "store"]

SAME = {"vocabulary": b"never changes" * 100}


def rows(store: Store) -> Counter[str]:
    return store._index.read(lambda records: Counter(kept.table for kept in records.kept()))


def forget(store: Store, found: Checkpoint) -> None:
    store.delete([found.id])
    with store.collecting("a test"):
        store.collect([found.id])
        store.clear_garbage()


def taken_away(store: Store) -> None:
    """Have the object store have waited its hour."""
    sync(store, "lake", {})
    for one, replica in store.outbox("lake").items():
        assert shared(store).delete(replica.job, [replica.group], grace_ns=0) == [replica.group]
        store.removed_there(one)


def test_what_was_sent_is_forgotten_with_its_checkpoint(store: Store, machines: Machines, tmp_path: Path) -> None:
    for step in range(8):
        found = commit(store, f"step-{step}", {**SAME, "weights": b"%d" % step * 100})
        assert sync(store, "lake", {}).copied == 1
        assert rows(store)["sent"] == 2
        forget(store, found)
        taken_away(store)
        assert rows(store)["sent"] == 0
    assert objects(tmp_path) == []
    last = commit(store, "last", {**SAME, "weights": b"last"})
    assert sync(store, "lake", {}).copied == 1
    (listed,) = machines().checkpoints()
    assert listed.id == last.id


def test_bytes_that_a_later_one_has_borrowed_stay_and_are_lent_no_more(
    store: Store, machines: Machines, tmp_path: Path
) -> None:
    """S26: none goes that another checkpoint names."""
    first = commit(store, "first", SAME)
    second = commit(store, "second", {**SAME, "weights": b"2"})
    for _ in range(2):
        sync(store, "lake", {})
    assert len(objects(tmp_path)) == 2
    forget(store, first)
    taken_away(store)
    third = commit(store, "third", {**SAME, "weights": b"3"})
    assert sync(store, "lake", {}).copied == 1
    other = machines()
    for found in (second, third):
        assert bring(other, other.checkpoint(found.id), {}).remote is None
    forget(store, second)
    forget(store, third)
    taken_away(store)
    assert (rows(store)["sent"], objects(tmp_path)) == (0, [])


def test_bytes_that_are_there_no_more_are_sent_again(store: Store, machines: Machines, tmp_path: Path) -> None:
    """As when another machine has deleted their checkpoint, so long ago that its tombstone has gone."""
    commit(store, "first", SAME)
    sync(store, "lake", {})
    (path,) = [one for one in (tmp_path / "archive").rglob("*") if one.is_file() and "/d/" in str(one)]
    path.unlink()
    second = commit(store, "second", SAME)
    assert sync(store, "lake", {}).copied == 1
    other = machines()
    assert bring(other, other.checkpoint(second.id), {}).remote is None


def test_at_another_place_nothing_was_sent_yet(store: Store) -> None:
    commit(store, "first", SAME)
    sync(store, "lake", {})
    detach(store, "lake")
    assert rows(store)["sent"] == 0
    attach(store, "lake", {}, path="elsewhere")
    store.replicate("job", Replication("lake"))
    commit(store, "second", SAME)
    assert sync(store, "lake", {}).copied == 1


@pytest.fixture
def node(machines: Machines) -> Store:
    return replicating(machines(), nodes=2)


def generation(store: Store, found: Checkpoint) -> int:
    replica = store.replica(found.id)
    assert replica is not None
    return replica.generation


def later(store: Store, found: Checkpoint, ns: int) -> None:
    store._index.write(lambda records: forget_numbers(records, found.committed_ns + ns))


def test_a_number_outlives_its_checkpoint_by_long(node: Store) -> None:
    first = commit(node, "last.pt", SAME)
    node.note_replica(first.id, first, lambda now: replace(now, stage=Stage.ABORTED))
    forget(node, first)
    later(node, first, NUMBERED_NS // 2)
    second = commit(node, "last.pt", SAME)
    assert generation(node, second) == 2, "the first one may have a tombstone"
    later(node, second, 2 * NUMBERED_NS)
    third = commit(node, "last.pt", SAME)
    assert generation(node, third) == 3, "the second one is still there"
    for one in (second, third):
        node.note_replica(one.id, one, lambda now: replace(now, stage=Stage.ABORTED))
        forget(node, one)
    assert rows(node)["generations"] == 2
    later(node, third, 2 * NUMBERED_NS)
    assert rows(node)["generations"] == 0


def test_a_number_is_kept_as_long_as_something_waits_to_be_deleted_there(node: Store) -> None:
    found = commit(node, "last.pt", SAME)
    node.note_replica(found.id, found, lambda now: replace(now, stage=Stage.REPLICATED, group="g"))
    forget(node, found)
    later(node, found, 2 * NUMBERED_NS)
    assert rows(node)["generations"] == 2
    node.removed_there(found.id)
    later(node, found, 2 * NUMBERED_NS)
    assert rows(node)["generations"] == 0
