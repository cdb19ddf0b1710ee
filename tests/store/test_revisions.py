"""A checkpoint that changes: files that came late, somebody who relies on it, a person who overrules its state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fuse_ckpt import faults
from fuse_ckpt.errors import CommitFailed, UnknownCheckpoint, UsageError
from fuse_ckpt.model import Checkpoint, Entry, InodeKey, Kind, Metadata, NewCheckpoint, State
from fuse_ckpt.store import Store
from fuse_ckpt.store.codec import manifest_from_json
from tests.store.test_crashes import Crash, crash_at

Save = Callable[..., Checkpoint]
POINTS = ["adopt:fsync", "adopt:link", "adopt:dirsync", "amend:manifest", "amend:txn", "amend:done"]


def amend(store: Store, seen: Checkpoint, files: dict[str, bytes], **more: object) -> Checkpoint | None:
    """Adopt `files` and add them to `seen`, as the committer does."""
    entries, sealed = [], []
    with store.committing():
        for path, data in files.items():
            source = store.layout.work(seen.job) / f"late-{path}".replace("/", "_")
            source.unlink(missing_ok=True)
            source.write_bytes(data)
            adopted = store.adopt(source)
            entries.append(Entry(path, Kind.FILE, 0o600, 2, adopted.size, adopted.digest))
            sealed += [(adopted.inode, adopted.digest)] * adopted.linked
        fields = {"metadata": Metadata(step=5), "draft": "second", **more}
        new = NewCheckpoint(seen.job, seen.unit, "0", 9, entries=tuple(entries), sealed=tuple(sealed), **fields)  # type: ignore[arg-type]
        return store.amend(seen, new)


def content(store: Store, checkpoint: Checkpoint) -> dict[str, bytes]:
    entries = store.manifest(checkpoint.id).entries
    return {entry.path: store.blob_path(entry.digest).read_bytes() for entry in entries}


def test_a_late_file_is_added_under_the_same_id(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"}, draft="first")
    generation = store.generation()
    after = amend(store, first, {"rank1": b"late"})
    assert after is not None
    assert (after.id, after.ordinal, after.created_ns, after.committed_ns) == (
        first.id, first.ordinal, first.created_ns, first.committed_ns,
    )  # fmt: skip
    assert (after.revision, after.files, after.size, after.metadata.step, after.draft) == (2, 2, 11, 5, "second")
    assert store.checkpoints() == [after]
    assert content(store, after) == {"model": b"weights", "rank1": b"late"}
    assert store.generation() > generation
    assert store.verify() == []
    on_disk = manifest_from_json(store.layout.manifest(first.id).read_bytes(), "it")
    assert on_disk == store.manifest(first.id)


def test_a_file_that_came_late_is_sealed_by_its_inode(store: Store, save: Save) -> None:
    amend(store, save(store, "x", {"model": b"weights"}), {"rank1": b"late"})
    status = (store.layout.work("job") / "late-rank1").stat()
    key = InodeKey(status.st_dev, status.st_ino)
    assert set(store.sealed_inodes([key])) == {key}


@pytest.mark.parametrize("rely", ["settle", "lease"])
def test_what_somebody_relies_on_is_not_amended(store: Store, save: Save, rely: str) -> None:
    first = save(store, "x", {"model": b"weights"})
    lease = getattr(store, rely)(first.id)
    if rely == "lease":
        lease.close()
    before = store.layout.manifest(first.id).read_bytes()
    assert amend(store, first, {"rank1": b"late"}) is None
    assert store.checkpoint(first.id) == replace(first, settled=True)
    assert content(store, first) == {"model": b"weights"}
    assert b"late" not in store.layout.manifest(first.id).read_bytes()
    assert len(before) <= len(store.layout.manifest(first.id).read_bytes()) <= len(before) + 30


def test_one_that_was_deleted_or_amended_since_it_was_seen_is_not_amended(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"})
    assert amend(store, first, {"rank1": b"late"}) is not None
    assert amend(store, first, {"rank2": b"later"}) is None
    second = store.checkpoint(first.id)
    store.delete([first.id])
    assert amend(store, second, {"rank2": b"later"}) is None
    assert store.checkpoints(states={State.DELETED})[0].revision == 2


def test_a_lease_that_comes_between_the_look_and_the_record_wins(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"})

    def hook(point: str) -> None:
        if point == "amend:txn":
            store.settle(first.id)

    with faults.install(hook):
        assert amend(store, first, {"rank1": b"late"}) is None
    assert content(store, first) == {"model": b"weights"}
    assert manifest_from_json(store.layout.manifest(first.id).read_bytes(), "it") == store.manifest(first.id)


def test_a_missing_shard_that_comes_late_makes_it_available(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"}, failure="names shard-2, which is missing")
    after = amend(store, first, {"shard-2": b"late"})
    assert after is not None
    assert (after.state, after.failure) == (State.AVAILABLE, None)


def test_a_blob_that_is_not_there_is_refused(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"})
    new = NewCheckpoint("job", first.unit, "0", 1, Metadata(), (Entry("a", Kind.FILE, 0o600, 1, 3, "00" * 32),))
    with pytest.raises(CommitFailed, match="is not in the store"):
        store.amend(first, new)
    assert store.checkpoints() == [first]


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_of_an_amendment_leaves_it_whole_as_before_or_as_after(root: Path, save: Save, point: str) -> None:
    with Store.open(root) as store:
        first = save(store, "x", {"model": b"weights"})
        with faults.install(crash_at(point, 1)), pytest.raises(Crash):
            amend(store, first, {"rank1": b"late"})
    with Store.open(root) as store:
        (found,) = store.checkpoints()
        assert found.revision == (2 if point == "amend:done" else 1)
        assert store.verify() == store.problems == []
        store.recover()
        assert {path.name for path in store.layout.blobs.glob("*/*")} == {
            entry.digest for entry in store.manifest(found.id).entries
        }
        again = amend(store, found, {"rank2": b"later"})
        assert again is not None
        assert manifest_from_json(store.layout.manifest(first.id).read_bytes(), "it") == store.manifest(first.id)


def test_an_amendment_that_fails_leaves_the_manifest_as_the_index_says(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"})

    def full(point: str) -> None:
        if point == "amend:txn":
            raise OSError(28, "No space left on device")

    with faults.install(full), pytest.raises(OSError, match="No space"):
        amend(store, first, {"rank1": b"late"})
    assert store.checkpoints() == [first]
    assert manifest_from_json(store.layout.manifest(first.id).read_bytes(), "it") == store.manifest(first.id)
    assert amend(store, first, {"rank1": b"late"}) is not None


def test_every_fault_point_of_an_amendment_is_in_the_matrix(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"})
    reached: list[str] = []
    with faults.install(reached.append):
        amend(store, first, {"rank1": b"late"})
    assert set(reached) == set(POINTS)


def test_settling_twice_is_settling_once_and_writes_once(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"})
    settled = store.settle(first.id)
    generation = store.generation()
    assert store.settle(first.id) == settled == replace(first, settled=True)
    assert store.generation() == generation
    with pytest.raises(UnknownCheckpoint):
        store.settle("0" * 32)


def test_a_full_disk_keeps_nobody_from_a_lease(store: Store, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(store, "x", {"model": b"weights"})

    def full(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "settle", full)
    with store.lease(first.id) as lease:
        assert lease.checkpoint == first.id


def test_a_person_overrules_failed_and_why_it_failed_stays(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"}, failure="its writer was killed", metadata=Metadata(weights=True))
    assert store.latest("job") is None
    after = store.promote(first.id)
    assert (after.state, after.promoted, after.failure) == (State.AVAILABLE, True, "its writer was killed")
    assert store.latest("job") == after == store.promote(first.id)
    assert manifest_from_json(store.layout.manifest(first.id).read_bytes(), "it").checkpoint == after
    assert amend(store, after, {"rank1": b"late"}) is None


def test_only_a_failed_one_can_be_promoted(store: Store, save: Save) -> None:
    first = save(store, "x", {"model": b"weights"})
    with pytest.raises(UsageError, match="is available: only a failed one"):
        store.promote(first.id)
    store.delete([first.id])
    with pytest.raises(UnknownCheckpoint):
        store.promote(first.id)
