"""Which checkpoints wait to be copied to an object store, and that nothing takes them away until then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fuse_ckpt.errors import UnknownCheckpoint, UnknownJob
from fuse_ckpt.faults import install
from fuse_ckpt.model import Checkpoint, Entry, Kind, Metadata, NewCheckpoint, Replica, Replication, Stage, State
from fuse_ckpt.store import Store, parse_policy

Save = Callable[..., Checkpoint]
LAKE = Replication("lake")


@pytest.fixture
def replicating(store: Store) -> Store:
    store.ensure_job("job", 1)
    store.replicate("job", LAKE)
    return store


def finish(store: Store, found: Checkpoint, stage: Stage = Stage.REPLICATED) -> Replica | None:
    return store.note_replica(found.id, found, lambda before: replace(before, stage=stage))


def test_a_commit_of_a_job_that_replicates_waits_to_be_copied(replicating: Store, save: Save) -> None:
    found = save(replicating, "a", {"a": b"123"})
    save(replicating, "b", {"b": b"b"}, job="other")
    assert list(replicating.outbox()) == [found.id]
    replica = replicating.replica(found.id)
    assert replica is not None
    assert (replica.storage, replica.stage, replica.size, replica.sent) == ("lake", Stage.WAITING, 3, 0)
    assert list(replicating.outbox("lake")) == [found.id]
    assert replicating.outbox("sea") == {}


def test_what_was_committed_before_is_copied_when_a_person_says_so(store: Store, save: Save) -> None:
    early = [save(store, name, {name: b"x"}) for name in ("a", "b")]
    store.replicate("job", LAKE)
    assert store.outbox() == {}
    assert store.queue_all("job") == 2
    assert list(store.outbox()) == [one.id for one in early]
    finish(store, early[0])
    assert store.queue_all("job") == 1
    with pytest.raises(UnknownJob):
        store.queue_all("nobody")
    with pytest.raises(UnknownJob):
        store.replicate("nobody", LAKE)


def test_a_failed_one_is_copied_once_it_is_promoted(replicating: Store, save: Save) -> None:
    found = save(replicating, "a", {"a": b"1"}, failure="cut off")
    assert replicating.outbox() == {}
    replicating.promote(found.id)
    assert list(replicating.outbox()) == [found.id]


@pytest.mark.parametrize("stage", [Stage.REPLICATED, Stage.ABORTED, Stage.GIVEN_UP])
def test_what_is_over_leaves_the_outbox_and_stays_known(replicating: Store, save: Save, stage: Stage) -> None:
    found = save(replicating, "a", {"a": b"1"})
    finish(replicating, found, stage)
    assert replicating.outbox() == {}
    assert replicating.replicas([found.id])[found.id].stage is stage
    assert finish(replicating, found) is None


def test_the_outbox_outlives_the_process(replicating: Store, save: Save, root: Path) -> None:
    found = save(replicating, "a", {"a": b"1"})
    replicating.note_replica(found.id, found, lambda before: replace(before, stage=Stage.UPLOADING, sent=1))
    replicating.close()
    with Store.open(root) as again:
        assert again.outbox()[found.id].stage is Stage.UPLOADING


def test_a_commit_that_was_cut_off_is_in_no_outbox(replicating: Store, save: Save) -> None:
    class Crash(Exception):
        pass

    def crash(point: str) -> None:
        if point == "publish:txn":
            raise Crash

    with install(crash), pytest.raises(Crash):
        save(replicating, "a", {"a": b"1"})
    assert replicating.outbox() == {}


def test_deleting_ends_the_copying_and_restoring_begins_it_again(replicating: Store, save: Save) -> None:
    found = save(replicating, "a", {"a": b"1"})
    replicating.delete([found.id])
    assert replicating.outbox() == {}
    with pytest.raises(UnknownCheckpoint):
        replicating.known_for_upload(found.id)
    replicating.restore(found.id)
    assert list(replicating.outbox()) == [found.id]
    assert replicating.known_for_upload(found.id).id == found.id


def test_a_copy_that_is_there_is_not_sent_again_after_a_restore(replicating: Store, save: Save) -> None:
    found = save(replicating, "a", {"a": b"1"})
    finish(replicating, found)
    replicating.delete([found.id])
    replicating.restore(found.id)
    assert replicating.outbox() == {}


def test_what_is_collected_is_known_no_more(replicating: Store, save: Save) -> None:
    found = save(replicating, "a", {"a": b"1"})
    replicating.delete([found.id])
    with replicating.collecting("a test"):
        replicating.collect([found.id])
    assert replicating.replica(found.id) is None


def test_no_policy_removes_what_waits_and_a_full_disk_does_not(replicating: Store, save: Save) -> None:
    first, second, last = (save(replicating, f"step-{n}", {"a": bytes([n])}) for n in range(3))
    finish(replicating, first)
    reasons = {
        one.checkpoint.id: (one.keep, one.reason) for one in replicating.decisions(parse_policy("keep-last=1"), 0)
    }
    assert reasons[first.id][0] is False
    assert reasons[second.id] == (True, "in use by the copy to lake")
    assert reasons[last.id][0] is True
    plan = replicating.plan(0, "job", min_free=1 << 60)
    assert second.id not in {one.id for one in plan.pressed}


def amend(store: Store, found: Checkpoint, path: str) -> Checkpoint | None:
    source = store.layout.tmp / "late"
    source.write_bytes(path.encode())
    with store.committing():
        adopted = store.adopt(source)
        source.unlink()
        entry = Entry(path, Kind.FILE, 0o644, 1, adopted.size, adopted.digest)
        new = NewCheckpoint("job", found.unit, "0", 1, Metadata(), (entry,), draft="late")
        return store.amend(found, new)


def test_an_amendment_begins_the_copying_anew(replicating: Store, save: Save) -> None:
    found = save(replicating, "a", {"a": b"1"})
    replicating.note_replica(found.id, found, lambda before: replace(before, stage=Stage.UPLOADING, sent=1))
    amended = amend(replicating, found, "late")
    assert amended is not None
    replica = replicating.outbox()[found.id]
    assert (replica.stage, replica.sent, replica.size) == (Stage.WAITING, 0, 5)
    assert finish(replicating, found) is None, "what was sent is not the checkpoint as it is now"
    assert finish(replicating, amended) is not None


def test_generations_count_the_saves_of_one_name_in_one_attempt(store: Store, save: Save) -> None:
    store.ensure_job("job", 1)
    found = []
    for attempt in ("one", "one", "two"):
        store.replicate("job", Replication("lake", rank=1, nodes=4, attempt=attempt))
        found += [save(store, "last", {"a": attempt.encode()}), save(store, attempt, {"a": b"x"})]
    told = [store.outbox()[one.id] for one in found]
    assert [(one.attempt, one.generation) for one in told] == [
        ("one", 1), ("one", 1), ("one", 2), ("one", 2), ("two", 1), ("two", 1),
    ]  # fmt: skip
    assert {(one.rank, one.nodes) for one in told} == {(1, 4)}


def test_a_failed_save_of_one_of_many_nodes_counts_too(store: Store, save: Save) -> None:
    store.ensure_job("job", 1)
    store.replicate("job", Replication("lake", rank=1, nodes=2, attempt="x"))
    failed = save(store, "last", {"a": b"1"}, failure="cut off")
    whole = save(store, "last", {"a": b"2"})
    assert store.outbox()[whole.id].generation == 2
    assert store.replicas([failed.id])[failed.id].stage is Stage.GIVEN_UP


def test_a_connection_that_is_left_takes_its_entries_along(replicating: Store, save: Save) -> None:
    found = save(replicating, "a", {"a": b"1"})
    assert replicating.forget_outbox("lake") == 1
    assert replicating.job("job").replication is None
    assert replicating.replicas([found.id])[found.id].reason == "lake was detached"
    save(replicating, "b", {"b": b"1"})
    assert replicating.outbox() == {}


def test_one_process_at_a_time_copies_to_a_connection(replicating: Store) -> None:
    lock = replicating.lock_upload("lake")
    assert lock is not None
    with lock:
        assert replicating.lock_upload("lake") is None
        other = replicating.lock_upload("sea")
        assert other is not None
        other.close()
    again = replicating.lock_upload("lake")
    assert again is not None
    again.close()


def test_a_part_of_what_many_nodes_write_is_not_offered_and_counts_for_no_policy(store: Store, save: Save) -> None:
    resumable = {"metadata": Metadata(resumable=True)}
    whole = save(store, "step-1", {"a": b"1"}, **resumable)
    store.replicate("job", Replication("lake", rank=1, nodes=2, attempt="x"))
    part = save(store, "step-2", {"a": b"2"}, **resumable)
    assert store.resolve("job:latest").id == whole.id
    assert store.latest("job") == whole
    assert store.is_part(part.id)
    decided = store.decisions(parse_policy("keep-last=1"), 0)
    assert {one.checkpoint.id: one.keep for one in decided} == {whole.id: True, part.id: True}
    store.note_replica(part.id, part, lambda before: replace(before, stage=Stage.ABORTED, reason="rank 0 never came"))
    after = store.checkpoint(part.id)
    assert (after.state, after.failure) == (State.FAILED, "a part of what 2 nodes wrote, and rank 0 never came")
