"""What people say of checkpoints: tags, pins, deletion and its undoing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_ckpt import faults
from fuse_ckpt.errors import CheckpointLeased, CheckpointPinned, InvalidTag, TagTaken, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, Metadata, NewCheckpoint, Shape, State, Unit
from fuse_ckpt.store import Store, locks
from fuse_ckpt.store.codec import manifest_from_json
from fuse_ckpt.store.lifecycle import RESERVE

Save = Callable[..., Checkpoint]


def on_disk(store: Store, checkpoint: str) -> Checkpoint:
    return manifest_from_json(store.layout.manifest(checkpoint).read_bytes(), "it").checkpoint


# tags and pins


def test_a_tag_is_a_reference(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    tagged = store.tag(one.id, "release-1")
    assert tagged.tags == ("release-1",)
    assert store.tag(one.id, "release-1") == tagged
    assert store.tag(one.id, "paper").tags == ("release-1", "paper")
    assert store.resolve("release-1").id == store.resolve("paper").id == one.id
    assert on_disk(store, one.id).tags == ("release-1", "paper")
    assert store.untag(one.id, "release-1").tags == ("paper",)
    assert store.untag(one.id, "release-1").tags == ("paper",)
    with pytest.raises(UnknownCheckpoint):
        store.resolve("release-1")


def test_one_checkpoint_has_a_tag(store: Store, save: Save) -> None:
    first, second = save(store, "x", {"a": b"1"}), save(store, "x", {"a": b"2"})
    store.tag(first.id, "release-1")
    with pytest.raises(TagTaken, match=rf"{first.id} \(job/x@1\): --force"):
        store.tag(second.id, "release-1")
    assert store.tag(second.id, "release-1", force=True).tags == ("release-1",)
    assert store.checkpoint(first.id).tags == on_disk(store, first.id).tags == ()
    assert store.resolve("release-1").id == second.id


def test_a_tag_hides_no_pushed_checkpoint(store: Store, save: Save) -> None:
    mine = save(store, "x", {"a": b"1"})
    unit, entries = Unit("gpt2", Shape.FLAT), store.manifest(mine.id).entries
    pushed = store.publish(NewCheckpoint("", unit, "0", 1, Metadata(), entries))
    for force in (False, True):
        with pytest.raises(TagTaken, match=f"the name of a pushed checkpoint, {pushed.id}"):
            store.tag(mine.id, "gpt2", force=force)
    assert store.tag(pushed.id, "gpt2").tags == ("gpt2",)


def test_a_tag_that_cannot_be_one_changes_nothing(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    with pytest.raises(InvalidTag):
        store.tag(one.id, "beef")
    with pytest.raises(UnknownCheckpoint):
        store.tag("none", "release-1")
    assert store.checkpoint(one.id) == one


def test_a_pinned_one_is_not_deleted_nor_any_with_it(store: Store, save: Save) -> None:
    free, pinned = save(store, "x", {"a": b"1"}), save(store, "y", {"a": b"2"})
    assert store.pin(pinned.id).pinned
    assert store.pin(pinned.id).pinned
    with pytest.raises(CheckpointPinned, match=rf"{pinned.id} \(job/y@1\) is pinned: checkpoint unpin it first"):
        store.delete([free.id, pinned.id])
    assert [one.id for one in store.checkpoints()] == [free.id, pinned.id]
    assert on_disk(store, pinned.id).pinned
    assert not store.pin(pinned.id, False).pinned
    store.delete([free.id, pinned.id])
    assert store.checkpoints() == []


# delete and restore


def test_a_restored_checkpoint_is_what_it_was(store: Store, save: Save) -> None:
    saved = [save(store, "x", {"a": b"1"}), save(store, "y", {"a": b"2"}, failure="torn")]
    for one in saved:
        store.tag(one.id, f"tag-{one.name}")
    before = store.checkpoints()
    store.delete([one.id for one in saved])
    trash = store.trash()
    assert [one.state for one in trash] == [State.DELETED] * 2
    assert [one.deleted_from for one in trash] == [State.AVAILABLE, State.FAILED]
    assert all(one.deleted_ns for one in trash)
    assert store.deleted(f"job/x@{saved[0].ordinal}").id == store.deleted(saved[0].id[-8:]).id == saved[0].id
    for one in saved:
        store.restore(one.id)
    assert store.checkpoints() == before
    assert store.resolve("tag-x").id == saved[0].id
    assert [on_disk(store, one.id) for one in saved] == before
    assert store.trash() == []


def test_restoring_what_is_not_deleted_changes_nothing(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    generation = store.generation()
    assert store.restore(one.id) == one
    with pytest.raises(UnknownCheckpoint):
        store.deleted(one.id)
    with pytest.raises(UnknownCheckpoint):
        store.restore("none")
    assert store.checkpoints() == [one]
    assert store.generation() <= generation + 2


def test_a_tag_that_moved_on_meanwhile_stays_where_it_is(store: Store, save: Save) -> None:
    first, second = save(store, "x", {"a": b"1"}), save(store, "x", {"a": b"2"})
    store.tag(first.id, "release-1")
    store.tag(first.id, "paper")
    store.delete([first.id])
    store.tag(second.id, "release-1")
    assert store.restore(first.id).tags == ("paper",)
    assert store.resolve("release-1").id == second.id


def test_a_crash_between_a_mark_and_its_file_leaves_the_mark(root: Path, save: Save) -> None:
    def crash(point: str) -> None:
        if point == "mark:manifest":
            raise SystemExit

    with Store.open(root) as store:
        one = save(store, "x", {"a": b"1"})
        with faults.install(crash), pytest.raises(SystemExit):
            store.tag(one.id, "release-1")
    with Store.open(root) as store:
        assert store.resolve("release-1").tags == ("release-1",)


@pytest.mark.parametrize("collected", [False, True])
def test_the_file_of_what_two_change_at_once_says_what_the_index_says(
    store: Store, save: Save, collected: bool
) -> None:
    one = save(store, "x", {"a": b"1"})
    save(store, "x", {"a": b"2"})
    tagged, go_on = threading.Event(), threading.Event()

    def pause(reached: str) -> None:
        if reached == "mark:manifest":
            tagged.set()
            assert go_on.wait(20)

    def tag() -> None:
        with pytest.raises(UnknownCheckpoint):  # for it is deleted meanwhile
            store.tag(one.id, "release-1")

    with faults.install(pause):
        tagging = threading.Thread(target=tag)
        tagging.start()
        assert tagged.wait(20)  # it is recorded, and its file is to be written
        store.delete([one.id])
        if collected:
            with store.collecting("a test"):
                store.collect([one.id])
        go_on.set()
        tagging.join(20)
    path = store.layout.manifest(one.id)
    assert path.exists() is not collected
    assert collected or json.loads(path.read_text())["checkpoint"]["state"] == "deleted"


def test_a_manifests_file_outlives_the_index(root: Path, save: Save) -> None:
    """Whoever changes what an index has lost leaves the files from which it can be rebuilt."""
    with Store.open(root) as store:
        found = [save(store, f"x{n}", {"a": b"%d" % n}) for n in range(3)]

        lost: list[str] = []

        def lose(point: str) -> None:
            if point == "delete:manifest" and not lost:
                lost.append(point)
                (root / "index" / "data.mdb").unlink()
                with Store.open(root):
                    """Another command makes a new one."""

        with faults.install(lose):
            store.delete([one.id for one in found])
        assert {path.stem for path in store.layout.manifests.iterdir()} == {one.id for one in found}


def test_latest_and_best_follow_every_change(store: Store, save: Save) -> None:
    said = [Metadata(resumable=True, weights=True, eval_loss=loss) for loss in (0.5, 0.1, 0.3)]
    one, two, three = (save(store, f"s_{n}", {"a": b"%d" % n}, metadata=meta) for n, meta in enumerate(said))
    seen = []
    for change in (lambda: None, lambda: store.delete([two.id, three.id]), lambda: store.restore(three.id)):
        change()
        seen.append((store.latest("job"), store.best("job")))
    assert [(latest.id, best.id) for latest, best in seen if latest and best] == [
        (three.id, two.id), (one.id, one.id), (three.id, three.id),
    ]  # fmt: skip


# leases


def test_a_refusal_names_those_who_hold_the_lease_and_not_those_who_did(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    with store.lease(one.id, "a run of other"), store.lease(one.id, "a fetch\nby hand") as fetch:
        with pytest.raises(CheckpointLeased, match=r"in use by a run of other, a fetch by hand: end that"):
            store.delete([one.id])
        fetch.close()
        with pytest.raises(CheckpointLeased, match=r"in use by a run of other: end that"):
            store.delete([one.id])
        assert store.leased() == {one.id: "a run of other"}
    assert store.leased() == {}
    with store.lease(one.id), pytest.raises(CheckpointLeased, match=f"in use by process {os.getpid()}:"):
        store.delete([one.id])


def test_a_lease_of_another_process_ends_with_it(root: Path, store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    code = (
        "import sys; from pathlib import Path; from fuse_ckpt.store import Store\n"
        "lease = Store.open(Path(sys.argv[1])).lease(sys.argv[2], 'a fetch'); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(root), one.id]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(CheckpointLeased, match="in use by a fetch: end that"):
            store.delete([one.id])
        holder.kill()
    store.delete([one.id])
    assert store.checkpoints() == []


def test_what_a_killed_holder_wrote_is_gone_with_the_next(store: Store, save: Save) -> None:
    one = save(store, "x", {"a": b"1"})
    path = store.layout.lock(f"lease-{one.id}")
    path.write_text("a run that was killed\n")
    with store.lease(one.id, "a fetch"):
        assert locks.holders(path) == "a fetch"


def test_ended_leases_leave_no_files_once_somebody_asked(store: Store, save: Save) -> None:
    for n in range(3):
        store.lease(save(store, "x", {"a": b"%d" % n}).id).close()
    assert store.leased() == {}
    assert not list(store.layout.locks.glob("lease-*"))


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """16 MiB of a disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode != 0:
        assert "CI" not in os.environ, made.stderr
        pytest.skip("only root may mount a disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as filler:
        for size in (1 << 16, 1):
            try:
                while True:
                    filler.write(bytes(size))
            except OSError:
                continue


def test_delete_and_gc_work_on_a_full_disk(small_disk: Path, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_ckpt.store.lifecycle.ROOMY", 4 << 20)
    with Store.open(small_disk / "store") as store:
        saved = [save(store, f"s_{n}", {"a": os.urandom(1 << 20)}) for n in range(3)]
        for one in saved[:2]:
            (store.layout.work("job") / f"{one.name}-a").unlink()
        store.keep_reserve()
        assert store.layout.reserve.stat().st_size == RESERVE
        fill(small_disk)
        store.delete([one.id for one in saved[:2]])
        with store.collecting("a test"):
            store.collect([one.id for one in saved[:2]])
            assert store.clear_garbage().free == 2 << 20
        assert store.checkpoints() == saved[2:]
        assert save(store, "next", {"a": os.urandom(1 << 20)}) in store.checkpoints()
        assert store.verify() == []
