from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import lmdb
import pytest
import uuid_utils
from blake3 import blake3

from fuse_ckpt.errors import (
    CheckpointLeased,
    CommitFailed,
    CorruptRecord,
    InvalidJobName,
    UnknownCheckpoint,
    UnknownJob,
)
from fuse_ckpt.model import (
    Checkpoint,
    Entry,
    Kind,
    Metadata,
    NewCheckpoint,
    RunStatus,
    Shape,
    State,
    Unit,
)
from fuse_ckpt.store import Store
from fuse_ckpt.store.codec import manifest_from_json
from fuse_ckpt.store.layout import Layout

Save = Callable[..., Checkpoint]


# jobs and runs


def test_a_job_is_made_once_with_its_directories(store: Store) -> None:
    before = os.umask(0o077)
    try:
        assert store.ensure_job("job", 1) == store.ensure_job("job", 2)
    finally:
        os.umask(before)
    assert store.layout.work("job").stat().st_mode & 0o777 == 0o755
    assert store.layout.pending("job").stat().st_mode & 0o777 == 0o700
    assert store.job("job").created_ns == 1


def test_an_unknown_job_is_named(store: Store) -> None:
    with pytest.raises(UnknownJob, match="Unknown training job: none"):
        store.job("none")
    with pytest.raises(UnknownJob):
        store.begin_run("none", ["true"], 1)


def test_a_job_name_cannot_leave_the_store(store: Store) -> None:
    with pytest.raises(InvalidJobName):
        store.ensure_job("../job", 1)


def test_a_run_is_recorded_at_its_beginning_and_at_its_end(store: Store) -> None:
    store.ensure_job("job", 1)
    store.ensure_job("job-2", 1)
    first = store.begin_run("job", ["python", "train.py"], 10, node="3", parent="x")
    store.begin_run("job-2", ["true"], 10)
    assert store.runs("job") == [first]
    assert first.status is RunStatus.IN_PROGRESS
    ended = store.end_run(first, 20, 130, RunStatus.INTERRUPTED)
    second = store.begin_run("job", ["true"], 30)
    assert store.runs("job") == [ended, second]
    assert (ended.node, ended.parent, ended.exit_code) == ("3", "x", 130)


# publishing and finding


def test_a_published_checkpoint_is_listed_with_its_sums(store: Store, save: Save) -> None:
    checkpoint = save(store, "c", {"a": b"12", "b": b"345", "d/e": b"12"}, metadata=Metadata(step=7))
    assert store.checkpoints() == [checkpoint]
    assert (checkpoint.size, checkpoint.files, checkpoint.ordinal, checkpoint.metadata.step) == (7, 3, 1, 7)
    assert checkpoint.state is State.AVAILABLE
    assert [entry.path for entry in store.manifest(checkpoint.id).entries] == ["a", "b", "d/e"]


def test_the_manifest_file_says_what_the_index_says(store: Store, save: Save) -> None:
    checkpoint = save(store, "c", {"a": b"12", "caf\udce9": b"345"})
    data = store.layout.manifest(checkpoint.id).read_bytes()
    assert manifest_from_json(data, "it") == store.manifest(checkpoint.id)


def test_a_draft_that_failed_is_kept_as_failed(store: Store, save: Save) -> None:
    checkpoint = save(store, "c", {"a": b"12"}, failure="torn")
    assert (checkpoint.state, checkpoint.failure) == (State.FAILED, "torn")
    assert store.latest("job") is None
    assert store.checkpoints(states={State.AVAILABLE}) == []


def test_ordinals_count_per_job_and_name(store: Store, save: Save) -> None:
    saved = [save(store, name, {"a": b"1"}, job=job) for job, name in [("j", "x"), ("j", "x"), ("j", "y"), ("k", "x")]]
    assert [one.ordinal for one in saved] == [1, 2, 1, 1]


def test_a_job_whose_name_begins_with_anothers_is_listed_apart(store: Store, save: Save) -> None:
    one, two = (save(store, "x", {"a": b"1"}, job=job) for job in ("run", "run2"))
    assert store.checkpoints("run") == [one]
    assert store.checkpoints("run2") == [two]


def test_newest_is_the_last_version_that_is_not_deleted(store: Store, save: Save) -> None:
    first = save(store, "x", {"a": b"1"})
    second = save(store, "x", {"a": b"2"}, failure="torn")
    save(store, "y", {"a": b"3"})
    newest = store.newest("job", "x")
    assert newest is not None
    assert newest.checkpoint == second
    store.delete([second.id])
    newest = store.newest("job", "x")
    assert newest is not None
    assert newest.checkpoint == first
    assert store.newest("job", "z") is None


def test_references_resolve_against_the_index(store: Store, save: Save) -> None:
    first = save(store, "a/b.pt", {"a": b"1"}, metadata=Metadata(weights=True, eval_loss=0.5))
    second = save(store, "", {"a": b"2"}, metadata=Metadata(resumable=True))
    assert store.resolve("job/a/b.pt@1") == store.resolve(first.id[-8:]) == store.resolve("job:best") == first
    assert store.resolve("job/") == store.resolve(second.id) == store.resolve("job:latest") == second
    assert (store.latest("job"), store.best("job")) == (second, first)


def test_ids_increase_when_the_clock_goes_back(store: Store, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(store, "x", {"a": b"1"})
    monkeypatch.setattr(uuid_utils, "uuid7", lambda: "018f0000-0000-7000-8000-000000000001")
    later = [save(store, "x", {"a": b"1"}).id for _ in range(3)]
    assert [first.id, *later] == sorted({first.id, *later})


def test_ids_are_found_by_their_beginning_whatever_its_length(store: Store, save: Save) -> None:
    made = [save(store, f"{number}.pt", {"f": b"data"}).id for number in range(20)]
    store.delete(made[3:5])
    for length in range(37):
        for one in (made[0], made[-1], "ffffffff-ffff-ffff-ffff-ffffffffffff"):
            begin = one[:length]
            assert store.ids(begin) == [each for each in made if each.startswith(begin)], begin
    assert store.ids(limit=3) == made[:3]
    assert store.ids(made[0] + "0") == store.ids("-" + made[0]) == store.ids("a" * 4000) == []


def test_a_checkpoint_without_its_blobs_is_not_published(store: Store) -> None:
    entry = Entry("a", Kind.FILE, 0o644, 1, 3, blake3(b"abc").hexdigest())
    with pytest.raises(CommitFailed, match="not in the store"):
        store.publish(NewCheckpoint("job", Unit("a", Shape.FLAT), "0", 1, Metadata(), (entry,)))
    assert os.listdir(store.layout.manifests) == []


def test_a_checkpoint_of_symlinks_alone_can_be_published(store: Store) -> None:
    entry = Entry("a", Kind.SYMLINK, 0o777, 1, target="b")
    checkpoint = store.publish(NewCheckpoint("job", Unit("d", Shape.DIRECTORY), "0", 1, Metadata(), (entry,)))
    assert (checkpoint.size, checkpoint.files) == (0, 0)


@pytest.mark.parametrize("text", ["", "x", "../../etc/passwd", "{018f0000-0000-7000-8000-000000000001}", "\udcff"])
def test_a_text_that_is_no_id_is_unknown(store: Store, text: str) -> None:
    with pytest.raises(UnknownCheckpoint):
        store.checkpoint(text)
    with pytest.raises(UnknownCheckpoint):
        store.lease(text)


# several processes, growth


def test_the_generation_rises_with_commits_and_with_nothing_else(store: Store, save: Save) -> None:
    store.ensure_job("job", 1)
    before = store.generation()
    assert store.ensure_job("job", 2).created_ns == 1
    assert store.checkpoints() == []
    assert store.generation() == before
    save(store, "x", {"a": b"1"})
    assert store.generation() > before


WRITER = """
import sys, time
from pathlib import Path
from fuse_ckpt.model import *
from fuse_ckpt.store import Store
store = Store.open(Path(sys.argv[1]), map_size=65536)
entries = tuple(Entry(f"{i}" * 50, Kind.SYMLINK, 0o777, 1, target="t" * 100) for i in range(100))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    store.publish(NewCheckpoint("job", Unit("x", Shape.DIRECTORY), "0", 1, Metadata(), entries))
"""


def test_two_processes_that_publish_at_once_lose_nothing_and_repeat_nothing(root: Path, save: Save) -> None:
    count = 25
    with Store.open(root, map_size=65536) as store:
        before = store.generation()
        command = [sys.executable, "-c", WRITER, str(root), str(count)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        writers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in "ab"
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"go\n")
            writer.stdin.flush()
        for writer in writers:
            writer.communicate(timeout=60)
        assert [writer.returncode for writer in writers] == [0, 0]
        assert store.generation() > before
        listed = store.checkpoints("job")
        assert [one.ordinal for one in listed] == list(range(1, 2 * count + 1))
        assert sorted({one.id for one in listed}) == [one.id for one in listed]
        assert save(store, "x", {"a": b"1"}).ordinal == 2 * count + 1
        assert store.verify() == []


def test_threads_share_a_store(store: Store, save: Save) -> None:
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for turn in range(10):
                save(store, f"x{n}", {"a": b"%d" % turn})
                store.checkpoints()
                store.generation()
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(store.checkpoints()) == 40
    assert store.verify() == []


def test_a_full_map_grows_and_nothing_is_lost(root: Path) -> None:
    entries = tuple(Entry(f"{n:0200}", Kind.SYMLINK, 0o777, 1, target="t") for n in range(1000))
    new = NewCheckpoint("job", Unit("x", Shape.DIRECTORY), "0", 1, Metadata(), entries)
    with Store.open(root, map_size=65536) as store:
        ids = [store.publish(new).id for _ in range(5)]
        assert [one.id for one in store.checkpoints()] == ids
    assert (root / "index" / "data.mdb").stat().st_size > 1 << 20
    with Store.open(root, map_size=65536) as store:
        assert store.manifest(ids[-1]).entries == entries


# leases and deletion


def test_a_deleted_checkpoint_is_hidden_and_its_bytes_stay(store: Store, save: Save) -> None:
    checkpoint = save(store, "x", {"a": b"1"})
    [entry] = store.manifest(checkpoint.id).entries
    store.delete([checkpoint.id, checkpoint.id])
    assert store.checkpoints() == []
    assert [one.id for one in store.checkpoints(states={State.DELETED})] == [checkpoint.id]
    for ask in (store.checkpoint, store.manifest, store.resolve, store.lease, lambda one: store.delete([one])):
        with pytest.raises(UnknownCheckpoint):
            ask(checkpoint.id)
    store.recover()
    assert store.blob_path(entry.digest).read_bytes() == b"1"
    saved = manifest_from_json(store.layout.manifest(checkpoint.id).read_bytes(), "it")
    assert saved.checkpoint.state is State.DELETED


def test_a_deleted_ones_number_is_not_used_again(store: Store, save: Save) -> None:
    store.delete([save(store, "x", {"a": b"1"}).id])
    assert save(store, "x", {"a": b"1"}).ordinal == 2


def test_a_leased_checkpoint_is_not_deleted_nor_any_with_it(store: Store, save: Save) -> None:
    free, used = save(store, "x", {"a": b"1"}), save(store, "y", {"a": b"1"})
    with store.lease(used.id), store.lease(used.id) as lease:
        assert lease.checkpoint == used.id
        with pytest.raises(CheckpointLeased, match=used.id):
            store.delete([free.id, used.id])
        assert [one.id for one in store.checkpoints()] == [free.id, used.id]
    store.delete([free.id, used.id])
    assert store.checkpoints() == []


def test_deleting_an_unknown_one_deletes_none(store: Store, save: Save) -> None:
    kept = save(store, "x", {"a": b"1"})
    with pytest.raises(UnknownCheckpoint):
        store.delete([kept.id, "018f0000-0000-7000-8000-000000000001"])
    assert store.checkpoints() == [kept]


def test_a_delete_leaves_no_lock_files(store: Store, save: Save) -> None:
    store.delete([save(store, "x", {"a": b"1"}).id])
    assert [name for name in os.listdir(store.layout.locks) if name.startswith("lease")] == []


# damage


def damage(root: Path, table: bytes, key: Callable[[bytes], bool] = lambda key: True) -> None:
    """Flip a bit in the last byte of each record of a closed store's table whose key `key` accepts."""
    with lmdb.open(str(Layout(root).index), max_dbs=8, lock=False, map_size=1 << 24) as env:
        database = env.open_db(table)
        with env.begin(write=True, db=database) as transaction:
            for found, value in list(transaction.cursor()):
                if key(found):
                    transaction.put(found, value[:-1] + bytes([value[-1] ^ 1]))


def test_a_damaged_record_does_not_break_the_listing(root: Path, save: Save) -> None:
    with Store.open(root) as store:
        saved = [save(store, "x", {"a": b"%d" % n}) for n in range(3)]
    damage(root, b"checkpoints", lambda key: key.hex() == saved[1].id.replace("-", ""))
    with Store.open(root) as store:
        assert store.checkpoints() == store.checkpoints("job") == [saved[0], saved[2]]
        assert len(store.problems) == 1
        assert saved[1].id in store.problems[0]
        assert store.problems == store.verify()
        with pytest.raises(CorruptRecord, match=saved[1].id):
            store.checkpoint(saved[1].id)
        assert save(store, "x", {"a": b"9"}).ordinal == 4


@pytest.mark.parametrize("table", [b"manifests", b"by_name", b"blobs", b"inodes", b"jobs", b"runs"])
def test_verify_reads_every_table(root: Path, save: Save, table: bytes) -> None:
    with Store.open(root) as store:
        saved = save(store, "x", {"a": b"1"})
        store.begin_run("job", ["true"], 1)
    damage(root, table)
    with Store.open(root) as store:
        assert store.checkpoints() == [saved]
        assert len(store.verify()) == 1
        store.jobs()
        store.runs("job")
        store.recover()
        assert os.listdir(store.layout.manifests) == [f"{saved.id}.json"]


def test_a_damaged_count_of_a_blob_does_not_stop_a_commit(root: Path, save: Save) -> None:
    with Store.open(root) as store:
        save(store, "x", {"a": b"1"})
    damage(root, b"blobs")
    with Store.open(root) as store:
        save(store, "x", {"a": b"1"})
        assert store.verify() == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda blob: blob.unlink(), "is missing"),
        (lambda blob: os.truncate(blob, 3), "has 3 bytes instead of 4"),
        (lambda blob: blob.write_bytes(b"dbta"), "is damaged"),
    ],
)
def test_verify_names_the_checkpoint_and_the_file(
    store: Store, save: Save, harm: Callable[[Path], object], said: str
) -> None:
    one = save(store, "x", {"a": b"data", "whole": b"whole"})
    other = save(store, "y", {"b": b"data"})
    harm(store.blob_path(blake3(b"data").hexdigest()))
    first, second = store.verify()
    assert first.startswith(f"{one.id} (job/x@1): 'a': ")
    assert second.startswith(f"{other.id} (job/y@1): 'b': ")
    assert said in first
    assert store.verify([other.id]) == [second]


def test_verify_of_an_unknown_one_says_so(store: Store) -> None:
    with pytest.raises(UnknownCheckpoint):
        store.verify(["none"])
