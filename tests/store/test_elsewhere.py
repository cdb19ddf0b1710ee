"""Checkpoints whose bytes lie in an object store: listed here, and taken for what is here only when it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from msgspec.structs import replace

from fuse_ckpt.errors import CheckpointLeased, Corrupt, CorruptBlob, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, Entry, Kind, Manifest, Metadata, Replica, Replication, Shape, Stage, State
from fuse_ckpt.store import Store, examine, parse_policy, rebuild

Save = Callable[..., Checkpoint]
THERE = Replica("lake", Stage.REPLICATED, 5, group="g")
BYTES = {"a": b"aa", "b": b"bbb"}


def id_of(number: int) -> str:
    return f"0196f0a5-0000-7000-8000-{number:012x}"


def head(number: int = 1, name: str = "step-1", *, size: int = 5, files: int = 2) -> Checkpoint:
    return Checkpoint(
        id_of(number), "far", name, Shape.DIRECTORY, 0, "0", State.AVAILABLE, 5, 5, size, files,
        Metadata(step=number, resumable=True), settled=True, remote="lake",
    )  # fmt: skip


def made_of(found: Checkpoint, files: dict[str, bytes] = BYTES) -> Manifest:
    return Manifest(
        found, tuple(Entry(path, Kind.FILE, 0o644, 1, len(b), blake3(b).hexdigest()) for path, b in files.items())
    )


def deliver(store: Store, tmp_path: Path, data: bytes, number: int = 1) -> None:
    source = tmp_path / "delivered"
    source.write_bytes(data)
    assert store.receive(id_of(number), blake3(data).hexdigest(), source)
    source.unlink()


def test_they_are_listed_and_found_as_any_other(store: Store) -> None:
    added = store.add_remote([(head(1), THERE), (head(2), THERE), (head(3, "last"), THERE)])
    assert [(one.id, one.ordinal) for one in added] == [(id_of(1), 1), (id_of(2), 2), (id_of(3), 1)]
    assert store.add_remote([(head(2), THERE)]) == []
    assert [one.id for one in store.checkpoints("far")] == [id_of(1), id_of(2), id_of(3)]
    assert store.resolve("far:latest").id == id_of(3)
    assert store.resolve("far/step-1@1").id == id_of(1)
    assert store.runs("far") == []


@pytest.mark.parametrize("wrong", [{"id": "../x"}, {"job": "a/b"}, {"id": ""}])
def test_what_cannot_be_a_checkpoint_is_refused(store: Store, wrong: dict[str, str]) -> None:
    with pytest.raises(Corrupt):
        store.add_remote([(replace(head(), **wrong), THERE)])
    assert store.checkpoints() == []


def test_a_path_that_leads_out_is_refused(store: Store) -> None:
    store.add_remote([(head(), THERE)])
    with pytest.raises(Corrupt):
        store.learn(made_of(head(), {"../a": b"aa"}))
    assert store.manifest(id_of(1)).entries == ()


def test_one_is_whole_when_all_its_bytes_are_here(store: Store, tmp_path: Path) -> None:
    store.add_remote([(head(), THERE)])
    assert not store.is_learned(id_of(1))
    store.learn(made_of(head()))
    assert store.is_learned(id_of(1))
    assert sorted(store.absent(id_of(1)).values()) == [2, 3]
    deliver(store, tmp_path, b"aa")
    assert store.arrived(id_of(1)).remote == "lake"
    deliver(store, tmp_path, b"bbb")
    assert store.arrived(id_of(1)).remote is None
    assert store.absent(id_of(1)) == {}
    assert store.verify() == []
    with pytest.raises(UnknownCheckpoint):
        store.absent(id_of(9))


def test_bytes_with_another_digest_are_not_taken(store: Store, tmp_path: Path) -> None:
    store.add_remote([(head(), THERE)])
    store.learn(made_of(head()))
    source = tmp_path / "wrong"
    source.write_bytes(b"xx")
    with pytest.raises(CorruptBlob):
        store.receive(id_of(1), blake3(b"aa").hexdigest(), source)
    assert len(store.absent(id_of(1))) == 2
    store.recover()
    assert list(store.layout.blobs.glob("*/*")) == []


def test_what_was_fetched_stays_through_a_crash_and_goes_with_its_checkpoint(store: Store, tmp_path: Path) -> None:
    store.add_remote([(head(), THERE)])
    store.learn(made_of(head()))
    deliver(store, tmp_path, b"aa")
    store.recover()
    assert len(store.absent(id_of(1))) == 1
    store.delete([id_of(1)])
    with store.collecting("a test"):
        store.collect([id_of(1)])
        store.clear_garbage()
    assert list(store.layout.blobs.glob("*/*")) == []


def test_a_store_that_has_them_is_in_order(store: Store, root: Path, tmp_path: Path) -> None:
    store.add_remote([(head(1), THERE), (head(2), THERE)])
    store.learn(made_of(head(2)))
    deliver(store, tmp_path, b"aa", 2)
    assert store.verify() == []
    store.close()
    assert examine(root) == []
    rebuild(root)
    with Store.open(root) as again:
        assert [(one.id, one.state, one.remote) for one in again.checkpoints()] == [
            (id_of(1), State.AVAILABLE, "lake"), (id_of(2), State.AVAILABLE, "lake"),
        ]  # fmt: skip
        assert list(again.absent(id_of(2)).values()) == [3]
        assert again.totals().blobs == 1


@pytest.fixture
def part(store: Store, save: Save) -> Checkpoint:
    """What rank 0 of two has committed."""
    store.ensure_job("job", 1)
    store.replicate("job", Replication("lake", rank=0, nodes=2, attempt="x"))
    return save(store, "step-1", {"a": b"aa"})


def whole(part: Checkpoint) -> Manifest:
    return made_of(replace(head(7, part.name), job="job", shape=part.shape, described=True))


def test_a_part_becomes_the_whole_and_its_id_still_leads_there(store: Store, part: Checkpoint) -> None:
    store.tag(part.id, "good")
    merged = store.merge(part.id, whole(part), THERE)
    assert (merged.ordinal, merged.tags, merged.remote, merged.files) == (part.ordinal, ("good",), "lake", 2)
    assert [one.id for one in store.checkpoints("job")] == [merged.id]
    assert {store.resolve(one).id for one in (part.id, merged.id, "good", "job/step-1")} == {merged.id}
    assert list(store.absent(merged.id).values()) == [3]
    assert store.outbox() == {}
    assert store.verify() == []
    assert [path.stem for path in store.layout.manifests.iterdir()] == [merged.id]
    store.recover()
    assert store.absent(merged.id).keys() == {blake3(b"bbb").hexdigest()}, "our own bytes are here as before"


def test_a_part_becomes_a_whole_of_which_no_more_is_known_yet(store: Store, part: Checkpoint, tmp_path: Path) -> None:
    merged = store.merge(part.id, Manifest(replace(whole(part).checkpoint, described=False), ()), THERE)
    assert not store.is_learned(merged.id)
    store.recover()
    store.learn(whole(part))
    assert list(store.absent(merged.id).values()) == [3]
    deliver(store, tmp_path, b"bbb", 7)
    assert store.arrived(merged.id).remote is None


def test_a_part_that_is_read_becomes_the_whole_later(store: Store, part: Checkpoint) -> None:
    with store.lease(part.id), pytest.raises(CheckpointLeased):
        store.merge(part.id, whole(part), THERE)
    assert [one.id for one in store.checkpoints("job")] == [part.id]
    store.merge(part.id, whole(part), THERE)


def test_a_part_that_was_deleted_becomes_nothing(store: Store, part: Checkpoint) -> None:
    store.delete([part.id])
    with pytest.raises(UnknownCheckpoint):
        store.merge(part.id, whole(part), THERE)


def test_what_was_sent_is_known_for_the_next_time(store: Store, save: Save) -> None:
    one, two = blake3(b"1").hexdigest(), blake3(b"2").hexdigest()
    store.ensure_job("job", 1)
    store.replicate("job", Replication("lake"))
    head = save(store, "step-1", {"a": b"1", "b": b"2"})
    store.note_sent("lake", head, {one: "d/1", two: "d/2"})
    assert store.sent("lake", "job", [one, two]) == {one: "d/1", two: "d/2"}
    assert store.sent("lake", "other", [one]) == store.sent("sea", "job", [one]) == {}
    store.forget_sent("lake", "job", [one])
    assert store.sent("lake", "job", [one, two]) == {two: "d/2"}
    store.delete([head.id])
    store.note_sent("lake", head, {one: "d/1"})
    assert store.sent("lake", "job", [one]) == {}, "nobody would come to forget it"


@pytest.fixture
def copied(store: Store, save: Save) -> Checkpoint:
    """A checkpoint that is here and in the object store."""
    store.ensure_job("job", 1)
    store.replicate("job", Replication("lake"))
    found = save(store, "step-1", {"a": b"aa", "b": b"bbb"})
    store.note_replica(found.id, found, lambda before: replace(before, stage=Stage.REPLICATED, group="g"))
    for path in store.layout.work("job").iterdir():
        path.unlink()
    return found


def clear(store: Store) -> int:
    with store.collecting("a test"):
        return store.clear_garbage().blobs


def test_what_is_replicated_can_be_evicted_and_fetched_again(store: Store, copied: Checkpoint, tmp_path: Path) -> None:
    (gone,) = store.evict([copied.id])
    assert (gone.remote, gone.state) == ("lake", State.AVAILABLE)
    assert clear(store) == 2
    assert [one.id for one in store.checkpoints("job")] == [copied.id]
    assert sorted(store.absent(copied.id).values()) == [2, 3]
    assert store.totals().bytes == 0
    assert store.verify() == []
    for data in (b"aa", b"bbb"):
        source = tmp_path / "again"
        source.write_bytes(data)
        assert store.receive(copied.id, blake3(data).hexdigest(), source)
        source.unlink()
    assert store.arrived(copied.id).remote is None
    assert store.totals().bytes == 5


def test_bytes_that_another_checkpoint_needs_stay_when_one_is_evicted(
    store: Store, copied: Checkpoint, save: Save
) -> None:
    other = save(store, "step-2", {"a": b"aa"})
    store.evict([copied.id])
    assert clear(store) == 1
    assert list(store.absent(copied.id).values()) == [3]
    assert store.absent(other.id) == {}
    assert store.receive(copied.id, blake3(b"aa").hexdigest()), "what is here already need not be fetched"
    assert not store.receive(copied.id, blake3(b"bbb").hexdigest())
    store.delete([other.id])
    with store.collecting("a test"):
        store.collect([other.id])
    assert clear(store) == 0
    assert list(store.absent(copied.id).values()) == [3]


def test_what_is_leased_or_nowhere_else_is_not_evicted(store: Store, copied: Checkpoint, save: Save) -> None:
    waiting = save(store, "step-2", {"a": b"x"})
    with store.lease(copied.id):
        assert store.evict([copied.id, waiting.id]) == []
    assert [one.id for one in store.evict([copied.id, waiting.id])] == [copied.id]


def test_the_copy_of_what_a_person_deleted_is_to_go_too(store: Store, copied: Checkpoint) -> None:
    store.delete([copied.id])
    assert store.outbox() == {}, "it can be restored"
    with store.collecting("a test"):
        store.collect([copied.id])
    left = store.outbox()[copied.id]
    assert (left.stage, left.job, left.group) == (Stage.REMOVING, "job", "g")


def test_a_policy_lets_go_of_the_bytes_here_and_leaves_the_copy(store: Store, copied: Checkpoint, save: Save) -> None:
    last = save(store, "step-2", {"a": b"x"})
    plan = store.plan(0, "job", parse_policy("keep-last=1"))
    assert {one.checkpoint.id: one.reason for one in plan.decisions}[copied.id].endswith("; its copy in lake stays")
    done = store.tidy(plan, "a test")
    assert (done.removed, [one.id for one in done.evicted], done.cleared.blobs) == ([], [copied.id], 2)
    assert [(one.id, one.remote) for one in store.checkpoints("job")] == [(copied.id, "lake"), (last.id, None)]
    assert store.plan(0, "job", parse_policy("keep-last=1")).removed == []


def test_a_disk_that_gets_full_lets_go_of_the_bytes_alone(store: Store, copied: Checkpoint, save: Save) -> None:
    save(store, "step-2", {"a": b"x"})
    done = store.tidy(store.plan(0, "job", min_free=1 << 60), "a test")
    assert ([one.id for one in done.evicted], done.removed, done.collected) == ([copied.id], [], [])
