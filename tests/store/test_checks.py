from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from blake3 import blake3

from fuse_ckpt.errors import CorruptBlob, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, Metadata, Scan, State
from fuse_ckpt.store import Layout, Store, durable, verification
from fuse_ckpt.store.codec import manifest_from_json

Save = Callable[..., Checkpoint]


def blob(store: Store, data: bytes) -> Path:
    return store.blob_path(blake3(data).hexdigest())


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, as a disk does it: size and times stay as they are."""
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write(store: Store, name: str, data: bytes) -> Path:
    path = store.layout.tmp / name
    path.write_bytes(data)
    return path


# -- a blob is compared before it is trusted


def test_a_damaged_blob_is_not_trusted_again_and_a_later_save_mends_it(store: Store, save: Save) -> None:
    data = b"frozen weights" * 100_000
    first = save(store, "a.pt", {"a.pt": data})
    flip(blob(store, data), 8 * 700_000 + 3)
    assert len(store.verify()) == 1
    second = save(store, "b.pt", {"b.pt": data})
    assert blob(store, data).read_bytes() == data
    assert store.verify() == []
    [one], [other] = store.manifest(first.id).entries, store.manifest(second.id).entries
    assert one.digest == other.digest
    assert len(list(store.layout.blobs.glob("*/*"))) == 1
    assert os.listdir(store.layout.tmp) == []


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda path: os.truncate(path, 3), lambda path: path.write_bytes(b"longer")]
)
def test_a_blob_that_is_missing_or_of_another_size_is_replaced(
    store: Store, save: Save, harm: Callable[[Path], None]
) -> None:
    save(store, "a.pt", {"a.pt": b"data"})
    blob(store, b"data").chmod(0o600)
    harm(blob(store, b"data"))
    assert store.adopt(write(store, "b", b"data")).linked
    assert store.verify() == []


def test_a_blob_that_cannot_be_read_is_replaced(store: Store, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, "a.pt", {"a.pt": b"data"})

    def refuse(first: int, second: int) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fuse_ckpt.store.blobs.same_bytes", refuse)
    assert store.adopt(write(store, "b", b"data")).linked


def test_a_blob_that_is_right_is_kept(store: Store, save: Save) -> None:
    save(store, "a.pt", {"a.pt": b"data"})
    inode = blob(store, b"data").stat().st_ino
    assert not store.adopt(write(store, "b", b"data")).linked
    assert blob(store, b"data").stat().st_ino == inode


@pytest.mark.parametrize("size", [0, 1, durable.CHUNK - 1, durable.CHUNK, durable.CHUNK + 1, 2 * durable.CHUNK + 5])
def test_files_are_compared_to_their_last_byte(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    others = [
        data,
        data + b"x",
        data[:-1],
        *(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in (0, size - 1) if size),
    ]
    for number, other in enumerate(others):
        one, two = tmp_path / "one", tmp_path / "two"
        one.write_bytes(data)
        two.write_bytes(other)
        with one.open("rb") as first, two.open("rb") as second:
            assert durable.same_bytes(first.fileno(), second.fileno()) == (other == data), number


# -- verify


def test_every_flipped_bit_is_found(store: Store, save: Save) -> None:
    chosen = random.Random(7)
    contents = {f"{n}.bin": chosen.randbytes(chosen.choice([1, 40, 5000, 3_000_000])) for n in range(10)}
    saved = save(store, "x", contents)
    for _ in range(50):
        path, data = chosen.choice(list(contents.items()))
        bit = chosen.randrange(8 * len(data))
        flip(blob(store, data), bit)
        [found] = store.examine([saved.id]).damage
        assert (found.path, found.digest) == (path, blake3(data).hexdigest())
        flip(blob(store, data), bit)
    assert store.verify() == []


def test_damage_names_the_others_that_hold_the_same_bytes(store: Store, save: Save) -> None:
    one, two = save(store, "x", {"a": b"same", "c": b"other"}), save(store, "y", {"b": b"same"})
    gone, whole = save(store, "z", {"b": b"same"}), save(store, "w", {"b": b"whole"})
    store.delete([gone.id])
    flip(blob(store, b"same"), 3)
    found = store.examine()
    assert found.checkpoints == (one.id, two.id, whole.id)
    assert [(each.checkpoint, each.path, each.shared) for each in found.damage] == [
        (one.id, "a", (two.id,)),
        (two.id, "b", (one.id,)),
    ]
    assert (found.files, found.size) == (3, 4 + 5 + 5)


def test_what_is_deleted_while_it_is_read_is_left_out(
    store: Store, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(store, "x", {"a": b"data"})
    flip(blob(store, b"data"), 1)

    def delete_first(*arguments: object, **more: object) -> object:
        store.delete([saved.id])
        return examine(*arguments, **more)  # type: ignore[arg-type]

    examine = verification.examine
    monkeypatch.setattr(verification, "examine", delete_first)
    assert store.examine([saved.id]).damage == ()


def test_progress_ends_with_all_bytes(store: Store, save: Save) -> None:
    save(store, "x", {"a": bytes(5 << 20), "b": b"b"})
    told: list[tuple[int, int]] = []
    store.examine(progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (5 * 2**20 + 1, 5 * 2**20 + 1)


def test_from_disk_finds_the_same(store: Store, save: Save) -> None:
    save(store, "x", {"a": b"data", "b": bytes(3 << 20)})
    flip(blob(store, b"data"), 1)
    assert len(store.examine(from_disk=True).damage) == 1


def test_one_large_blob_is_hashed_on_all_cores(store: Store, save: Save) -> None:
    data = random.Random(3).randbytes(20 << 20)
    save(store, "x", {"a": data, "b": b"small"})
    assert store.verify() == []
    flip(blob(store, data), 8 * (19 << 20))
    assert len(store.verify()) == 1


def test_an_interruption_ends_its_threads(store: Store, save: Save) -> None:
    save(store, "x", {str(n): bytes([n]) * (8 << 20) for n in range(8)})
    before = set(threading.enumerate())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.examine(progress=interrupt)
    assert set(threading.enumerate()) <= before
    assert store.verify() == []


# -- marks


def test_what_is_damaged_is_failed_and_latest_passes_over_it(store: Store, save: Save) -> None:
    metadata = Metadata(resumable=True)
    first = save(store, "x", {"a": b"1"}, metadata=metadata)
    second = save(store, "x", {"a": b"2", "b": b"3"}, metadata=metadata)
    assert store.latest("job") == second
    flip(blob(store, b"2"), 0)
    marked = store.mark_damaged(second.id, store.examine([second.id]).damage)
    assert (marked.state, marked.failure) == (State.FAILED, "damaged in the store: 'a'")
    assert store.latest("job") == first
    assert store.resolve("job:latest") == first
    written = manifest_from_json(store.layout.manifest(second.id).read_bytes(), "it")
    assert written.checkpoint == marked == store.checkpoint(second.id)


def test_what_is_mended_is_available_again(store: Store, save: Save) -> None:
    saved = save(store, "x", {"a": b"1"})
    flip(blob(store, b"1"), 0)
    store.mark_damaged(saved.id, store.examine([saved.id]).damage)
    save(store, "y", {"a": b"1"})
    assert store.examine([saved.id]).damage == ()
    assert store.mark_whole(saved.id) == saved


def test_a_mark_leaves_other_failures_alone(store: Store, save: Save) -> None:
    failed = save(store, "x", {"a": b"1"}, failure="its writer died")
    flip(blob(store, b"1"), 0)
    damage = store.examine([failed.id]).damage
    assert store.mark_damaged(failed.id, damage).failure == "its writer died"
    assert store.mark_whole(failed.id).state is State.FAILED
    with pytest.raises(UnknownCheckpoint):
        store.mark_damaged("none", damage)


def test_a_failure_names_a_few_files(store: Store, save: Save) -> None:
    saved = save(store, "x", {name: name.encode() for name in "abcde"})
    for name in "abcde":
        blob(store, name.encode()).unlink()
    marked = store.mark_damaged(saved.id, store.examine([saved.id]).damage)
    assert marked.failure == "damaged in the store: 'a', 'b', 'c' and 2 more"


# -- blobs and scans


def test_an_opened_blob_is_its_bytes(store: Store, save: Save) -> None:
    save(store, "x", {"a": b"data"})
    with store.open_blob(blake3(b"data").hexdigest()) as file:
        assert file.read() == b"data"
    blob(store, b"data").unlink()
    with pytest.raises(CorruptBlob, match="verify"):
        store.open_blob(blake3(b"data").hexdigest())


SCAN = Scan(rules=1, pickles=1, others=("os.system",), by="pickle")
DIGEST = "ab" * 32


def test_scans_are_kept_by_digest(root: Path) -> None:
    with Store.open(root) as store:
        store.keep_scans({DIGEST: SCAN})
        store.keep_scans({})
    with Store.open(root) as store:
        assert store.scans([DIGEST, "cd" * 32, DIGEST]) == {DIGEST: SCAN}


@pytest.fixture
def damaged_scan(root: Path) -> Iterator[Store]:
    with Store.open(root) as store:
        store.keep_scans({DIGEST: SCAN})
    with lmdb.open(str(Layout(root).index), max_dbs=20, lock=False, map_size=1 << 24) as env:
        database = env.open_db(b"scans")
        with env.begin(write=True, db=database) as transaction:
            [(key, value)] = list(transaction.cursor())
            transaction.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    with Store.open(root) as store:
        yield store


def test_a_scan_whose_record_is_damaged_is_made_again(damaged_scan: Store) -> None:
    assert damaged_scan.scans([DIGEST]) == {}
    assert len(damaged_scan.verify()) == 1
    damaged_scan.keep_scans({DIGEST: SCAN})
    assert damaged_scan.verify() == []
