"""An export to a real object store and to a directory: plain objects, then a manifest that says that all are there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from fuse_ckpt.errors import CorruptBlob, FuseCkptError, NotFound, StorageFailed, UnknownCheckpoint, UsageError
from fuse_ckpt.model import Checkpoint
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Place, Remote, export
from tests.transfer.conftest import NS, Save, link, objects, place_in_bucket, publish
from tests.transfer.conftest import file as stored
from tests.transfer.proxy import Proxy
from tests.transfer.seaweed import Seaweed

MANIFEST, MARKER = "fuse-ckpt.json", "fuse-ckpt.partial.json"
BIG = os.urandom((17 << 20) + 5)  # sent in parts
FILES = {"config.json": b"{}", "weights/model.bin": os.urandom(100_000), "empty": b"", "big.bin": BIG}


def names(remote: Remote, where: Place) -> list[str]:
    return sorted(objects(remote, where))


def test_the_files_are_plain_objects_and_the_manifest_tells_of_them(
    store: Store, save: Save, remote: Remote, there: Place
) -> None:
    checkpoint = save(FILES)
    done = export(store, checkpoint, remote, there)
    assert (done.files, done.size, done.sent, done.left_out) == (4, sum(map(len, FILES.values())), 4, ())
    found = objects(remote, there)
    manifest = json.loads(found.pop(MANIFEST))
    assert found == FILES
    told = manifest["export"]["manifest"]
    assert (told["checkpoint"]["id"], told["checkpoint"]["metadata"]["step"]) == (checkpoint.id, 1)
    entries = store.manifest(checkpoint.id).entries
    assert [(e["path"], e.get("size", 0), e["digest"], e["mtime_ns"]) for e in told["entries"]] == [
        (entry.path, entry.size, entry.digest, NS) for entry in entries
    ]


def test_a_second_export_sends_nothing_and_looks_at_every_byte(
    store: Store, save: Save, remote: Remote, there: Place
) -> None:
    checkpoint = save(FILES)
    export(store, checkpoint, remote, there)
    manifest = objects(remote, there)[MANIFEST]
    assert export(store, checkpoint, remote, there).sent == 0
    assert objects(remote, there)[MANIFEST] == manifest
    remote.put(there.key("weights/model.bin"), os.urandom(100_000))
    assert export(store, checkpoint, remote, there).sent == 1
    assert objects(remote, there)["weights/model.bin"] == FILES["weights/model.bin"]


def test_only_files_that_fit_are_sent_and_more_can_follow(
    store: Store, save: Save, remote: Remote, there: Place
) -> None:
    checkpoint = save({"a.json": b"{}", "d/b.json": b"[]", "c.bin": b"x"})
    assert export(store, checkpoint, remote, there, include=["*.json"]).files == 2
    assert names(remote, there) == ["a.json", "d/b.json", MANIFEST]
    assert export(store, checkpoint, remote, there).sent == 1
    assert names(remote, there) == ["a.json", "c.bin", "d/b.json", MANIFEST]
    with pytest.raises(UsageError, match="--force"):  # a manifest that told of fewer would leave some untold
        export(store, checkpoint, remote, there, include=["c.bin"])
    with pytest.raises(NotFound, match=r"\*\.nope"):
        export(store, checkpoint, remote, there, include=["*.nope"])


def test_a_symlink_to_a_file_is_a_copy_and_others_are_told_of(
    store: Store, save: Save, remote: Remote, there: Place
) -> None:
    links = {
        "d/up": "../a",
        "chain": "d/up",
        "out": "/etc/passwd",
        "far": "../../x",
        "gone": "nothing",
        "dir": "d",
        "me": "me",
    }
    done = export(store, save({"a": b"bytes", "d/b": b"b"}, links), remote, there)
    found = objects(remote, there)
    told = json.loads(found.pop(MANIFEST))["export"]
    assert found == {"a": b"bytes", "d/b": b"b", "d/up": b"bytes", "chain": b"bytes"}
    assert sorted(done.left_out) == ["dir", "far", "gone", "me", "out"]
    assert sorted(told["copies"]) == ["chain", "d/up"]
    assert {e["path"]: e["target"] for e in told["manifest"]["entries"] if e["kind"] == "symlink"} == links


ODD = [
    os.fsdecode(b"caf\xe9"),
    "new\nline",
    "esc\x1b[31m",
    "back\\slash",
    "100%",
    "%0A",
    "%41 #?*[]{}^`|<>\"'&+=;@:$,!~()",
    " lead",
    "trail ",
    "nfc \u00e9",
    "nfd e\u0301",
    "\U0001f600",
    "-dash",
    ".hidden",
    MANIFEST,
    MARKER,
]


def test_every_name_has_an_object_and_no_two_have_the_same(
    store: Store, save: Save, remote: Remote, there: Place
) -> None:
    longest = 255 if remote.bucket else 250  # in a directory obstore gives it a longer name while it is written
    files = {name: ascii(name).encode() for name in (*ODD, "n" * longest)}
    files[f"sub/{MANIFEST}"] = b"a file of the checkpoint"
    export(store, save(files), remote, there)
    found = objects(remote, there)
    keys = json.loads(found[MANIFEST])["export"]["keys"]
    assert len(found) == len(files) + 1
    assert {name: found[keys.get(name, name)] for name in files} == files
    plain = {name for name in files if name.isprintable() and name.isascii() and "%" not in name and "\\" not in name}
    assert plain - keys.keys() - {MANIFEST, MARKER} == plain - {MANIFEST, MARKER}


def test_a_destination_that_holds_something_else_is_refused_and_left_as_it_was(
    store: Store, save: Save, remote: Remote, there: Place
) -> None:
    first, second = save({"a": b"1"}), save({"a": b"2"})
    remote.put(there.key("mine"), b"mine")
    with pytest.raises(UsageError, match="other objects"):
        export(store, first, remote, there)
    assert objects(remote, there) == {"mine": b"mine"}
    remote.delete([there.key("mine")])
    export(store, first, remote, there)
    before = objects(remote, there)
    with pytest.raises(UsageError, match=f"holds checkpoint {first.id} already.*--force"):
        export(store, second, remote, there)
    assert objects(remote, there) == before
    export(store, second, remote, there, force=True)
    assert (objects(remote, there)["a"], names(remote, there)) == (b"2", ["a", MANIFEST])


def test_a_half_made_export_of_another_checkpoint_is_refused(
    store: Store, save: Save, remote: Remote, there: Place
) -> None:
    remote.put(there.key(MARKER), b'{"format": 1, "exporting": "the-other"}')
    with pytest.raises(UsageError, match="half-made export of the-other"):
        export(store, save({"a": b"1"}), remote, there)
    remote.put(there.key(MARKER), b"\x00nonsense")
    with pytest.raises(UsageError, match="half-made export of something"):
        export(store, save({"a": b"1"}), remote, there)


def test_damaged_bytes_never_leave(store: Store, save: Save, remote: Remote, there: Place) -> None:
    checkpoint = save(FILES)
    for name in ("big.bin", "config.json"):
        entry = next(entry for entry in store.manifest(checkpoint.id).entries if entry.path == name)
        blob = store.blob_path(entry.digest)
        good = blob.read_bytes()
        blob.chmod(0o600)
        for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[:-1], good + b"x"):
            blob.write_bytes(bad)
            with pytest.raises(CorruptBlob, match=name):
                export(store, checkpoint, remote, there)
            found = names(remote, there)
            assert MARKER in found
            assert MANIFEST not in found
            assert name not in found
        blob.unlink()
        with pytest.raises(CorruptBlob, match=rf"{name} are missing"):
            export(store, checkpoint, remote, there)
        blob.mkdir()
        with pytest.raises(FuseCkptError, match=rf"{name} cannot be read: Is a directory"):
            export(store, checkpoint, remote, there)
        blob.rmdir()
        blob.write_bytes(good)
    export(store, checkpoint, remote, there)
    assert MARKER not in names(remote, there)


def test_a_checkpoint_is_leased_while_it_is_exported(store: Store, save: Save, directory: Remote) -> None:
    checkpoint = save({"a": b"1"})
    refused: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(Exception, match="in use") as caught:
            store.delete([checkpoint.id])
        refused.append(type(caught.value).__name__)

    export(store, checkpoint, directory, Place("", "x"), progress=meanwhile)
    assert set(refused) == {"CheckpointLeased"}
    store.delete([checkpoint.id])
    with pytest.raises(UnknownCheckpoint):
        export(store, checkpoint, directory, Place("", "y"))


def test_progress_counts_what_is_sent_and_what_is_read_back(store: Store, save: Save, directory: Remote) -> None:
    checkpoint = save({"a": b"12345", "b": b"123"})
    seen: list[tuple[int, int]] = []
    export(store, checkpoint, directory, Place("", "x"), progress=lambda *now: seen.append(now))
    assert seen[-1] == (8, 8)
    seen.clear()
    export(store, checkpoint, directory, Place("", "x"), progress=lambda *now: seen.append(now))
    assert seen[-1] == (8, 8)
    seen.clear()
    export(store, checkpoint, directory, Place("", "y"), read_back=False, progress=lambda *now: seen.append(now))
    assert seen[-1] == (8, 8)


def test_what_is_this_machines_own_affair_stays_here(store: Store, save: Save, directory: Remote) -> None:
    checkpoint = save({"a": b"1"}, draft="a-draft", run="a-run")
    export(store, checkpoint, directory, Place("", "x"))
    told = directory.get("x/fuse-ckpt.json", 1 << 20) or b""
    assert b"a-draft" not in told
    assert b"a-run" not in told
    assert str(store.layout.root).encode() not in told


def test_a_loss_that_json_cannot_carry_is_left_out(store: Store, save: Save, directory: Remote) -> None:
    checkpoint = save({"a": b"1"})
    manifest = store.manifest(checkpoint.id)
    metadata = replace(checkpoint.metadata, train_loss=float("nan"))
    odd = Standing(store, replace(manifest, checkpoint=replace(checkpoint, metadata=metadata)))
    export(odd, checkpoint, directory, Place("", "x"))  # type: ignore[arg-type]
    assert b"NaN" not in (directory.get("x/fuse-ckpt.json", 1 << 20) or b"")


class Standing:
    """A store with a manifest of one's own."""

    def __init__(self, store: Store, manifest: object) -> None:
        self.lease, self.blob_path, self.layout = store.lease, store.blob_path, store.layout
        self.manifest = lambda id: manifest


def test_a_directory_below_a_file_is_an_error_of_one_line(store: Store, save: Save, directory: Remote) -> None:
    directory.put("x", b"a file")
    with pytest.raises(StorageFailed, match="Not a directory"):
        export(store, save({"a": b"1"}), directory, Place("", "x/y"))


def test_a_directory_whose_disk_is_full_is_an_error_of_one_line(
    store: Store, save: Save, directory: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    def full(*arguments: object, **options: object) -> None:
        raise obstore.exceptions.GenericError(
            "Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28)"
        )

    monkeypatch.setattr(obstore, "put", full)
    with pytest.raises(StorageFailed, match=r"Storage disk .*No space left on device\.$"):
        export(store, save({"a": b"1"}), directory, Place("", "x"))


def test_a_directory_in_the_store_is_refused(store: Store, save: Save, tmp_path: Path) -> None:
    from fuse_ckpt.model import Connection, Provider

    inside = Remote(Connection("disk", Provider.FILE, 1, root=str(store.layout.blobs)), "", {})
    with pytest.raises(UsageError, match="lies in the store"):
        export(store, save({"a": b"1"}), inside, Place("", "x"))


class TestInterrupted:
    """Through a proxy that does harm; only SeaweedFS behind it is real."""

    @pytest.fixture
    def checkpoint(self, save: Save) -> Checkpoint:
        return save({f"shard-{n}.bin": os.urandom(1000 + n) for n in range(20)} | {"big.bin": BIG})

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_an_error_now_and_then_is_tried_again(
        self, store: Store, checkpoint: Checkpoint, seaweed: Seaweed, faulty: Proxy, status: int
    ) -> None:
        faulty.decide = lambda method, path, count: status if count % 3 == 0 else None
        where = place_in_bucket(f"now-and-then-{status}")
        export(store, checkpoint, seaweed.remote(endpoint=faulty.endpoint, patience=30), where)
        assert len(names(seaweed.remote(), where)) == 22

    def test_a_connection_that_breaks_now_and_then_is_made_again(
        self, store: Store, checkpoint: Checkpoint, seaweed: Seaweed, faulty: Proxy
    ) -> None:
        from tests.transfer.proxy import HANG_UP

        faulty.decide = lambda method, path, count: HANG_UP if count % 4 == 0 else None
        where = place_in_bucket("breaks")
        export(store, checkpoint, seaweed.remote(endpoint=faulty.endpoint, patience=30), where)
        assert len(names(seaweed.remote(), where)) == 22

    @pytest.mark.parametrize("fault", [500, 503, -1])
    def test_a_server_that_fails_for_good_leaves_nothing_that_looks_whole(
        self, store: Store, checkpoint: Checkpoint, seaweed: Seaweed, faulty: Proxy, fault: int
    ) -> None:
        faulty.decide = lambda method, path, count: fault if "shard-1" in path and method == "PUT" else None
        where = place_in_bucket(f"for-good{fault}")
        with pytest.raises(StorageFailed, match="same command again"):
            export(store, checkpoint, seaweed.remote(endpoint=faulty.endpoint, patience=1), where)
        left = names(seaweed.remote(), where)
        assert MARKER in left
        assert MANIFEST not in left
        faulty.decide = lambda method, path, count: None
        faulty.restart()
        done = export(store, checkpoint, seaweed.remote(endpoint=faulty.endpoint), where)
        resent = {path for path in faulty.sent() if "shard" in path or "big" in path}
        assert all(Path(path.partition("?")[0]).name not in left for path in resent)
        assert done.sent == 21 - (len(left) - 1)
        assert names(seaweed.remote(), where) == sorted([*(f"shard-{n}.bin" for n in range(20)), "big.bin", MANIFEST])

    def test_ctrl_c_leaves_an_export_that_goes_on(
        self, store: Store, checkpoint: Checkpoint, seaweed: Seaweed, faulty: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import signal
        import threading

        interrupted: list[str] = []

        def interrupt(method: str, path: str, count: int) -> None:
            if "partNumber=2" in path and not interrupted:
                interrupted.append(path)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        faulty.decide = interrupt
        where = place_in_bucket("ctrl-c")
        with pytest.raises(KeyboardInterrupt):
            export(store, checkpoint, seaweed.remote(endpoint=faulty.endpoint), where)
        assert MANIFEST not in names(seaweed.remote(), where)
        faulty.decide = lambda method, path, count: None
        export(store, checkpoint, seaweed.remote(), where)
        assert MANIFEST in names(seaweed.remote(), where)

    def test_bytes_that_are_changed_on_the_way_are_found_at_the_end(
        self, store: Store, checkpoint: Checkpoint, seaweed: Seaweed, faulty: Proxy
    ) -> None:
        where = place_in_bucket("changed")
        remote = seaweed.remote(endpoint=faulty.endpoint)
        key = f"/{where}/shard-3.bin"

        def swap(method: str, path: str, count: int) -> None:
            if method == "GET" and path == key:
                seaweed.remote().put(where.key("shard-3.bin"), os.urandom(1003))

        faulty.decide = swap
        with pytest.raises(StorageFailed, match=r"shard-3\.bin"):
            export(store, checkpoint, remote, where)
        assert MANIFEST not in names(seaweed.remote(), where)
        faulty.decide = lambda method, path, count: None
        assert export(store, checkpoint, remote, where).sent == 1


def test_the_entries_of_a_forged_manifest_never_leave_the_prefix(
    store: Store, directory: Remote, tmp_path: Path
) -> None:
    from fuse_ckpt.errors import Corrupt
    from fuse_ckpt.model import Manifest

    entry = stored(store, "good", b"x")
    checkpoint = publish(store, [entry])
    for path in ("../evil", "/evil", "a/../../evil", "a//b", ""):
        forged = Standing(store, Manifest(checkpoint, (entry, replace(entry, path=path))))
        with pytest.raises(Corrupt):
            export(forged, checkpoint, directory, Place("", "x"))  # type: ignore[arg-type]
    below = Standing(store, Manifest(checkpoint, (link("l", "/tmp"), replace(entry, path="l/evil"))))
    with pytest.raises(Corrupt):
        export(below, checkpoint, directory, Place("", "x"))  # type: ignore[arg-type]
    assert os.listdir(tmp_path / "archive") == []
