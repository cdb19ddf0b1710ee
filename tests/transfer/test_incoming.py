"""Checkpoints that come from an object store: exports of ours, and what other tools have put there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fuse_ckpt.errors import Corrupt, FuseCkptError, NotFound, StorageFailed, UsageError
from fuse_ckpt.model import Kind, Origin, Shape, State
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import LocalSource, Place, Remote, RemoteSource, export, fetch, push
from tests.transfer.conftest import NS, Save, place_in_bucket
from tests.transfer.proxy import CUT, HANG_UP, Proxy
from tests.transfer.seaweed import Seaweed
from tests.transfer.test_export import MANIFEST, MARKER, ODD

BIG = os.urandom((20 << 20) + 3)  # read in parts


def test_an_export_comes_back_as_it_was(store: Store, remote: Remote, there: Place, tmp_path: Path, save: Save) -> None:
    source = tmp_path / "source"
    (source / "empty").mkdir(parents=True)
    for name in (*ODD, "n" * 250):
        (source / name).write_text(json.dumps(name))  # one is called as JSON is, and has to be some
    (source / "big.bin").write_bytes(BIG)
    (source / "run.sh").write_bytes(b"#!/bin/sh")
    (source / "run.sh").chmod(0o755)
    (source / "near").symlink_to("big.bin")
    (source / "far").symlink_to("nowhere")
    first = push(store, "step_7", LocalSource(source, store.layout.root))
    export(store, first, remote, there)
    back = push(store, "back", RemoteSource(remote, there))
    assert store.manifest(back.id).entries == store.manifest(first.id).entries
    assert (back.created_ns, back.shape, back.metadata.step) == (first.created_ns, first.shape, 7)
    assert back.origin == Origin(provider=remote.connection.name, path=str(there))
    fetch(store, back, tmp_path / "out")
    assert (tmp_path / "out/big.bin").read_bytes() == BIG
    assert (tmp_path / "out/run.sh").stat().st_mode & 0o777 == 0o755
    assert os.readlink(tmp_path / "out/far") == "nowhere"


def test_files_without_a_manifest_come_as_they_are(store: Store, remote: Remote, there: Place) -> None:
    remote.put(there.key("config.json"), b'{"architectures": ["Foreign"]}')
    remote.put(there.key("d/weights.bin"), b"weights")
    remote.put(there.key("d/empty"), b"")
    found = push(store, "foreign", RemoteSource(remote, there))
    assert (found.shape, found.files, found.metadata.model) == (Shape.DIRECTORY, 3, "Foreign")
    entries = {entry.path: entry for entry in store.manifest(found.id).entries}
    assert sorted(entries) == ["config.json", "d/empty", "d/weights.bin"]
    assert store.blob_path(entries["d/weights.bin"].digest).read_bytes() == b"weights"
    assert found.created_ns == max(entry.mtime_ns for entry in entries.values())


def test_one_object_is_a_flat_checkpoint(store: Store, remote: Remote, there: Place) -> None:
    remote.put(there.key("model.bin"), b"weights")
    found = push(store, "one", RemoteSource(remote, Place(there.bucket, there.key("model.bin"))))
    assert (found.shape, found.files) == (Shape.FLAT, 1)
    assert store.manifest(found.id).entries[0].path == "model.bin"


def test_nothing_there_is_not_found(store: Store, remote: Remote, there: Place) -> None:
    with pytest.raises(NotFound, match="nothing at"):
        RemoteSource(remote, there)


def test_a_half_made_export_is_not_taken_for_whole(store: Store, remote: Remote, there: Place, save: Save) -> None:
    export(store, save({"a": b"1", "b": b"2"}), remote, there)
    remote.delete([there.key(MANIFEST)])
    remote.put(there.key(MARKER), b'{"format": 1, "exporting": "x"}')
    with pytest.raises(UsageError, match="not finished"):
        RemoteSource(remote, there)


def test_a_manifest_that_does_not_fit_what_is_there_is_corrupt(
    store: Store, remote: Remote, there: Place, save: Save
) -> None:
    export(store, save({"a": b"12345", "b": b"2"}), remote, there)
    manifest = remote.get(there.key(MANIFEST), 1 << 20) or b""
    for bad in (
        manifest[:-20],
        b"null",
        b"[]",
        b"{}",
        manifest.replace(b'"a"', b'"c"'),
        manifest.replace(b"12", b"13"),
        json.dumps({"format": 2, "export": {}}).encode(),
    ):
        remote.put(there.key(MANIFEST), bad)
        with pytest.raises(Corrupt):
            RemoteSource(remote, there)
    remote.put(there.key(MANIFEST), manifest)
    remote.put(there.key("a"), b"54321")
    with pytest.raises(Corrupt, match="a is not what its manifest says"):
        push(store, "bad", RemoteSource(remote, there))
    remote.put(there.key("a"), b"1234")
    with pytest.raises(Corrupt, match="another size"):
        RemoteSource(remote, there)
    remote.delete([there.key("a")])
    with pytest.raises(Corrupt, match="missing"):
        RemoteSource(remote, there)
    assert [one.name for one in store.checkpoints()] == ["checkpoint-1"]
    assert os.listdir(store.layout.incoming) == []


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "a//b", "x\0y", "\ud800"])
def test_a_manifest_cannot_name_a_place_outside(
    store: Store, directory: Remote, save: Save, path: str, tmp_path: Path
) -> None:
    from fuse_ckpt.transfer import described

    export(store, save({"a": b"1"}), directory, Place("", "x"))
    document = json.loads(directory.get("x/fuse-ckpt.json", 1 << 20) or b"")
    document["export"]["manifest"]["entries"][0]["path"] = path
    document["export"]["keys"] = {path: "a"}
    document["blake3"] = described._digest(document["export"])
    directory.put("x/fuse-ckpt.json", json.dumps(document).encode())
    with pytest.raises((Corrupt, FuseCkptError)):
        push(store, "evil", RemoteSource(directory, Place("", "x")))
    assert [one.name for one in store.checkpoints()] == ["checkpoint-1"]
    assert not list(tmp_path.rglob("*evil*"))


def test_a_failed_checkpoint_does_not_come_back_as_a_whole_one(store: Store, directory: Remote, save: Save) -> None:
    export(store, save({"a": b"1"}, failure="its writer was killed"), directory, Place("", "x"))
    with pytest.raises(FuseCkptError, match="its writer was killed"):
        push(store, "back", RemoteSource(directory, Place("", "x")))
    found = push(store, "back", RemoteSource(directory, Place("", "x")), force=True)
    assert (found.state, found.failure) == (State.FAILED, "its writer was killed")


def test_a_copy_of_a_link_is_not_taken_for_a_file(store: Store, directory: Remote, save: Save) -> None:
    export(store, save({"a": b"1"}, {"l": "a"}), directory, Place("", "x"))
    found = push(store, "back", RemoteSource(directory, Place("", "x")))
    assert {entry.path: entry.kind for entry in store.manifest(found.id).entries} == {
        "a": Kind.FILE,
        "l": Kind.SYMLINK,
    }
    assert {entry.mtime_ns for entry in store.manifest(found.id).entries} == {NS}


def test_answers_that_are_cut_off_are_asked_for_again(
    store: Store, save: Save, seaweed: Seaweed, faulty: Proxy
) -> None:
    where = place_in_bucket("cut-off")
    export(store, save({"big.bin": BIG, "small": b"x" * 1000}), seaweed.remote(), where)
    harm = {0: 500, 1: CUT, 2: HANG_UP, 3: 503}
    faulty.decide = lambda method, path, count: harm.get(count % 7)
    found = push(store, "back", RemoteSource(seaweed.remote(endpoint=faulty.endpoint, patience=30), where))
    assert (found.files, store.verify([found.id])) == (2, [])


def test_a_push_whose_server_dies_is_gone_on_with(store: Store, save: Save, seaweed: Seaweed, faulty: Proxy) -> None:
    where = place_in_bucket("dies")
    files = {f"{n:02}.bin": os.urandom(100) for n in range(20)}
    export(store, save(files), seaweed.remote(), where)
    faulty.decide = lambda method, path, count: HANG_UP if path.endswith("19.bin") else None
    with pytest.raises(StorageFailed, match="same command again"):
        push(store, "back", RemoteSource(seaweed.remote(endpoint=faulty.endpoint, patience=1), where))
    assert len(store.checkpoints()) == 1
    faulty.decide = lambda method, path, count: None
    faulty.restart()
    push(store, "back", RemoteSource(seaweed.remote(endpoint=faulty.endpoint), where))
    # Several are read at once: of the others all had come but those that were on their way beside the last one.
    read = [path[-6:] for method, path in faulty.seen if path.endswith(".bin")]
    assert "19.bin" in read
    assert len(read) == len(set(read)) < 20
    assert os.listdir(store.layout.incoming) == []


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(store: Store, seaweed: Seaweed, faulty: Proxy) -> None:
    where = place_in_bucket("replaced")
    remote = seaweed.remote()
    remote.upload(where.key("big.bin"), len(BIG), lambda count: iter([BIG]))
    answered: list[str] = []

    def swap(method: str, path: str, count: int) -> None:
        if method == "GET" and path.endswith("big.bin"):
            answered.append(path)
            if len(answered) == 3:
                remote.upload(where.key("big.bin"), len(BIG), lambda count: iter([BIG[::-1]]))

    faulty.decide = swap
    with pytest.raises(StorageFailed, match="changed while it was read"):
        push(store, "mixed", RemoteSource(seaweed.remote(endpoint=faulty.endpoint), where))
    assert store.checkpoints() == []
