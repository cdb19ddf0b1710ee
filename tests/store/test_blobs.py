from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from fuse_ckpt.errors import CommitFailed, NotWritten
from fuse_ckpt.model import Checkpoint, InodeKey
from fuse_ckpt.store import Store, blobs, durable
from fuse_ckpt.store.blobs import SYNCERS

Save = Callable[..., Checkpoint]


def write(store: Store, name: str, data: bytes) -> Path:
    path = store.layout.tmp / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", [b"", b"x", b"x" * (durable.CHUNK + 1)])
def test_adopting_links_the_file_under_its_digest(store: Store, data: bytes) -> None:
    source = write(store, "a", data)
    adopted = store.adopt(source)
    assert adopted.digest == blake3(data).hexdigest()
    assert (adopted.size, adopted.linked) == (len(data), True)
    assert os.path.samefile(store.blob_path(adopted.digest), source)


def test_equal_bytes_are_kept_once(store: Store, save: Save) -> None:
    save(store, "a.pt", {"a.pt": b"same"})
    again = store.adopt(write(store, "b", b"same"))
    assert not again.linked
    assert store.known_digest(again.inode) is None
    assert len(list(store.layout.blobs.glob("*/*"))) == 1


def test_equal_files_of_one_draft_are_kept_once_and_the_first_is_the_blob(store: Store) -> None:
    first, second = (store.adopt(write(store, name, b"")) for name in "ab")
    assert (first.linked, second.linked) == (True, False)
    assert os.path.samefile(store.blob_path(first.digest), store.layout.tmp / "a")


def test_adopting_a_blobs_own_inode_again_says_linked(store: Store, save: Save) -> None:
    checkpoint = save(store, "a.pt", {"a.pt": b"same"})
    [entry] = store.manifest(checkpoint.id).entries
    os.link(store.blob_path(entry.digest), store.layout.tmp / "renamed")
    assert store.adopt(store.layout.tmp / "renamed").linked


def test_a_left_over_that_no_record_names_is_replaced(store: Store) -> None:
    blob = store.blob_path(blake3(b"data").hexdigest())
    blob.parent.mkdir()
    blob.write_bytes(b"torn")
    assert store.adopt(write(store, "a", b"data")).linked
    assert blob.read_bytes() == b"data"
    assert os.listdir(store.layout.tmp) == ["a"]


def test_a_recorded_blob_of_another_size_is_replaced(store: Store, save: Save) -> None:
    save(store, "a.pt", {"a.pt": b"data"})
    blob = store.blob_path(blake3(b"data").hexdigest())
    os.truncate(blob, 2)
    assert store.verify()
    store.adopt(write(store, "b", b"data"))
    assert store.verify() == []


@pytest.mark.parametrize("number", [errno.EMLINK, errno.EXDEV, errno.EPERM])
def test_what_cannot_be_linked_is_copied(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    source = write(store, "a", b"data" * durable.CHUNK)
    adopted = store.adopt(source)
    assert not adopted.linked
    blob = store.blob_path(adopted.digest)
    assert not os.path.samefile(blob, source)
    assert blob.read_bytes() == source.read_bytes()
    assert blob.stat().st_mode & 0o222 == 0


def test_short_writes_of_a_copy_are_continued(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:100]))
    source = write(store, "a", bytes(range(256)) * 20)
    with source.open("rb") as file:
        durable.copy_file(file.fileno(), store.layout.tmp / "copy")
    assert (store.layout.tmp / "copy").read_bytes() == source.read_bytes()


def test_a_symlink_is_never_followed(store: Store) -> None:
    (store.layout.tmp / "link").symlink_to(write(store, "a", b"secret"))
    with pytest.raises(OSError, match="symbolic links") as caught:
        store.adopt(store.layout.tmp / "link")
    assert caught.value.errno == errno.ELOOP


def test_a_fifo_is_refused_without_waiting_for_its_writer(store: Store) -> None:
    os.mkfifo(store.layout.tmp / "fifo")
    with pytest.raises(CommitFailed, match="not a regular file"):
        store.adopt(store.layout.tmp / "fifo")


def test_a_file_that_changes_while_it_is_read_is_not_committed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(store, "a", b"data")

    def digest_of(fd: int) -> str:
        source.write_bytes(b"other data")
        return blake3(b"data").hexdigest()

    monkeypatch.setattr(blobs, "digest_of", digest_of)
    with pytest.raises(CommitFailed, match="changed"):
        store.adopt(source)
    assert list(store.layout.blobs.glob("*/*")) == []


@pytest.mark.parametrize("files", [1, SYNCERS + 1])
def test_what_cannot_be_written_is_told_by_its_name(store: Store, monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    sources = [write(store, f"a{n}", b"data") for n in range(files)]
    with pytest.raises(NotWritten, match=r"^a0 could not be written to the disk: Input/output error$"):
        store.adopt_all(sources)
    assert list(store.layout.blobs.glob("*/*")) == []


def test_a_published_inode_is_sealed_as_long_as_it_is_the_blob(store: Store, save: Save) -> None:
    checkpoint = save(store, "a.pt", {"a.pt": b"data"})
    [entry] = store.manifest(checkpoint.id).entries
    blob = store.blob_path(entry.digest)
    key = InodeKey(blob.stat().st_dev, blob.stat().st_ino)
    assert store.known_digest(key) == entry.digest
    assert store.known_digest(InodeKey(key.dev + 1, key.ino)) is None
    write(store, "another", b"data").rename(blob)
    assert store.known_digest(key) is None


def test_sealed_inodes_answers_for_the_sealed_ones_only(store: Store, save: Save) -> None:
    save(store, "a.pt", {"a.pt": b"data"})
    source = store.layout.work("job") / "a.pt-a.pt"
    sealed = InodeKey(source.stat().st_dev, source.stat().st_ino)
    stranger = InodeKey(sealed.dev, sealed.ino + 1)
    assert store.sealed_inodes([sealed, stranger]) == {sealed: blake3(b"data").hexdigest()}


def test_an_adopted_file_without_a_record_is_not_sealed(store: Store) -> None:
    assert store.known_digest(store.adopt(write(store, "a", b"data")).inode) is None
