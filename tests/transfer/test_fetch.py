from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from blake3 import blake3

from fuse_ckpt.errors import (
    Busy,
    CheckpointLeased,
    Corrupt,
    CorruptBlob,
    FuseCkptError,
    NotFound,
    UnknownCheckpoint,
    UsageError,
)
from fuse_ckpt.model import Checkpoint, Entry, Kind
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import copying, fetch
from tests.transfer.conftest import NS, file, publish


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where nothing is yet, in a directory that holds nothing else."""
    (tmp_path / "there").mkdir()
    return tmp_path / "there/out"


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_files_come_out_with_their_bytes_modes_times_and_links(store: Store, out: Path) -> None:
    big = os.urandom((4 << 20) + 17)
    entries = [
        file(store, "a/b/model.bin", big, 0o600),
        file(store, "run.sh", b"#!", 0o4755),
        file(store, "empty", b"", 0o000),
        Entry("a/latest", Kind.SYMLINK, 0o777, NS, target="b/model.bin"),
        Entry("outside", Kind.SYMLINK, 0o777, NS, target="/etc/passwd"),
        Entry("cache", Kind.DIRECTORY, 0o555, NS),
    ]
    done = fetch(store, publish(store, entries), out)
    assert (done.path, done.files, done.size) == (out, 3, len(big) + 2)
    assert tree(out) == ["a", "a/b", "a/b/model.bin", "a/latest", "cache", "empty", "outside", "run.sh"]
    assert (out / "a/b/model.bin").read_bytes() == big
    modes = [stat.S_IMODE((out / name).stat().st_mode) for name in ("a/b/model.bin", "run.sh", "empty", "cache")]
    assert modes == [0o600, 0o755, 0o400, 0o755]
    for name in ("a/b/model.bin", "empty", "a/latest", "cache"):
        assert (out / name).lstat().st_mtime_ns == NS
    assert os.readlink(out / "a/latest") == "b/model.bin"
    assert os.readlink(out / "outside") == "/etc/passwd"
    assert os.listdir(out.parent) == ["out"]


def test_an_undecodable_name_comes_out_as_it_was(store: Store, out: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.bin")
    fetch(store, publish(store, [file(store, name, b"x")]), out)
    assert os.listdir(os.fsencode(out)) == [b"caf\xe9\n.bin"]


def test_an_empty_destination_is_filled_where_it_is(store: Store, out: Path) -> None:
    out.mkdir(mode=0o711)
    inode = out.stat().st_ino
    fetch(store, publish(store, [file(store, "d/a", b"x"), Entry("e", Kind.DIRECTORY, 0o755, NS)]), out)
    assert tree(out) == ["d", "d/a", "e"]
    assert (out.stat().st_ino, stat.S_IMODE(out.stat().st_mode)) == (inode, 0o711)


def test_only_files_that_fit_are_taken(store: Store, out: Path) -> None:
    entries = [file(store, name, b"x") for name in ("unet/w.bin", "vae/w.bin", "a.json", "b/c.json")]
    checkpoint = publish(store, [*entries, Entry("none", Kind.DIRECTORY, 0o755, NS)])
    fetch(store, checkpoint, out, include=["*.json", "unet/*"])
    assert tree(out) == ["a.json", "b", "b/c.json", "unet", "unet/w.bin"]


def test_globs_that_fit_nothing_are_not_found(store: Store, out: Path) -> None:
    with pytest.raises(NotFound, match=r"\*\.nope"):
        fetch(store, publish(store, [file(store, "a", b"x")]), out, include=["*.nope"])
    assert not out.exists()


def test_force_replaces_files_of_the_same_names_and_leaves_the_others(store: Store, out: Path) -> None:
    (out / "d").mkdir(parents=True)
    (out / "d/a").write_bytes(b"old")
    (out / "other").write_bytes(b"mine")
    checkpoint = publish(store, [file(store, "d/a", b"new"), file(store, "d/b", b"b")])
    with pytest.raises(UsageError, match="not empty"):
        fetch(store, checkpoint, out)
    assert tree(out) == ["d", "d/a", "other"]
    fetch(store, checkpoint, out, force=True)
    assert tree(out) == ["d", "d/a", "d/b", "other"]
    assert [(out / name).read_bytes() for name in ("d/a", "other")] == [b"new", b"mine"]


def test_force_never_writes_through_a_symlink(store: Store, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"precious")
    out.mkdir()
    (out / "d").symlink_to(elsewhere)
    (out / "f").symlink_to(elsewhere / "file")
    fetch(store, publish(store, [file(store, "f", b"new")]), out, force=True)
    with pytest.raises(FuseCkptError, match="in the way"):
        fetch(store, publish(store, [file(store, "d/file", b"new")]), out, force=True)
    assert (elsewhere / "file").read_bytes() == b"precious"
    assert (out / "f").read_bytes() == b"new"
    assert tree(elsewhere) == ["file"]


def test_a_destination_that_is_a_file_is_refused(store: Store, out: Path) -> None:
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="not a directory"):
        fetch(store, publish(store, [file(store, "a", b"x")]), out, force=True)
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "", ".", "a//b", "a/./b", "a\0b"])
def test_a_name_that_would_leave_the_destination_is_refused(store: Store, out: Path, path: str) -> None:
    entry = file(store, "good", b"x")
    checkpoint = publish(store, [entry])
    forged = Entry(path, Kind.FILE, 0o644, NS, size=1, digest=entry.digest)
    with pytest.raises(Corrupt):
        fetch(Forged(store, checkpoint, [entry, forged]), checkpoint, out)  # type: ignore[arg-type]
    assert os.listdir(out.parent) == []


def test_a_name_below_a_symlink_is_refused(store: Store, out: Path, tmp_path: Path) -> None:
    entry = file(store, "link/evil", b"x")
    checkpoint = publish(store, [entry])
    entries = [Entry("link", Kind.SYMLINK, 0o777, NS, target=str(tmp_path)), entry]
    with pytest.raises((FuseCkptError, OSError)):
        fetch(Forged(store, checkpoint, entries), checkpoint, out)  # type: ignore[arg-type]
    assert not (tmp_path / "evil").exists()
    assert os.listdir(out.parent) == []


class Forged:
    """A store whose manifest somebody has tampered with."""

    def __init__(self, store: Store, checkpoint: Checkpoint, entries: Sequence[Entry]) -> None:
        from fuse_ckpt.model import Manifest

        self.lease = store.lease
        self.blob_path = store.blob_path
        self.layout = store.layout
        self.manifest = lambda id: Manifest(checkpoint, tuple(entries))


@pytest.mark.parametrize("damage", ["changed", "shorter", "longer", "gone"])
@pytest.mark.parametrize("exists", [False, True])
def test_damaged_bytes_leave_the_destination_as_it_was(store: Store, out: Path, damage: str, exists: bool) -> None:
    if exists:
        out.mkdir()
        (out / "b").write_bytes(b"mine")
    entry = file(store, "b", b"12345678")
    checkpoint = publish(store, [file(store, "a", b"good"), entry])
    blob = store.blob_path(entry.digest)
    blob.chmod(0o600)
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes({"changed": b"1234x678", "shorter": b"1234", "longer": b"123456789"}[damage])
    with pytest.raises(CorruptBlob, match="b"):
        fetch(store, checkpoint, out, force=True)
    assert os.listdir(out.parent) == (["out"] if exists else [])
    if exists:
        assert tree(out) == ["b"]
        assert (out / "b").read_bytes() == b"mine"


def interrupted_after(count: int) -> copying.Progress:
    """Ctrl-C, at that many bytes."""

    def progress(done: int, total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_fetch_is_gone_on_with(store: Store, out: Path, exists: bool) -> None:
    if exists:
        out.mkdir()
    files = {"d/a": b"12345", "d/b": b"67890", "c": b"c"}
    checkpoint = publish(store, [file(store, path, data) for path, data in files.items()])
    with pytest.raises(KeyboardInterrupt):
        fetch(store, checkpoint, out, progress=interrupted_after(11))
    left = next(path for path in out.parent.rglob("*partial*"))
    inodes = {path: (left / path).stat().st_ino for path in ("c", "d/a")}
    seen: list[tuple[int, int]] = []
    done = fetch(store, checkpoint, out, progress=lambda *now: seen.append(now))
    assert (done.files, done.kept, seen[-1]) == (3, 3, (11, 11))
    assert {path: (out / path).read_bytes() for path in files} == files
    assert {path: (out / path).stat().st_ino for path in inodes} == inodes
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("exists", [False, True])
def test_what_a_killed_fetch_left_is_kept_where_it_is_right(store: Store, out: Path, exists: bool) -> None:
    checkpoint = publish(store, [file(store, "a", b"right"), file(store, "b", b"right"), file(store, "c/d", b"right")])
    left = out.parent / f"out.partial-{checkpoint.id}"
    if exists:
        left = out / f".partial-{checkpoint.id}"
    (left / "deep/er").mkdir(parents=True)
    (left / "deep/half").write_bytes(b"ha")
    (left / "a").write_bytes(b"wrong")
    (left / "b").write_bytes(b"right")
    (left / "c").mkdir()
    (left / "c/d").write_bytes(b"ri")
    kept = (left / "b").stat().st_ino
    assert fetch(store, checkpoint, out).kept == 1
    assert tree(out) == ["a", "b", "c", "c/d"]
    assert {(out / name).read_bytes() for name in ("a", "b", "c/d")} == {b"right"}
    assert ((out / "b").stat().st_ino, (out / "b").stat().st_mtime_ns) == (kept, NS)
    assert os.listdir(out.parent) == ["out"]


def test_links_that_somebody_put_into_a_partial_are_not_followed(store: Store, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"right")
    checkpoint = publish(store, [file(store, "a", b"right"), file(store, "d/b", b"right"), file(store, "c", b"right")])
    left = out.parent / f"out.partial-{checkpoint.id}"
    left.mkdir()
    (left / "a").symlink_to(elsewhere / "file")
    (left / "d").symlink_to(elsewhere)
    os.link(elsewhere / "file", left / "c")
    assert fetch(store, checkpoint, out).kept == 0
    assert tree(elsewhere) == ["file"]
    assert not any(path.is_symlink() for path in out.rglob("*"))
    (out / "c").chmod(0o600)
    (out / "c").write_bytes(b"mine")
    assert (elsewhere / "file").read_bytes() == b"right"


def test_another_choice_of_files_takes_what_an_interrupted_one_left_away(store: Store, out: Path) -> None:
    checkpoint = publish(store, [file(store, "a.json", b"{}"), file(store, "b/c.bin", b"c")])
    with pytest.raises(KeyboardInterrupt):
        fetch(store, checkpoint, out, progress=interrupted_after(3))
    fetch(store, checkpoint, out, include=["*.json"])
    assert tree(out) == ["a.json"]


def test_a_disk_with_too_little_room_is_refused_before_a_byte_is_written(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def nearly_full(path: str | Path) -> os.statvfs_result:
        fields = list(real(path))
        fields[4] = 0  # f_bavail
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    monkeypatch.setattr(copying, "clone", lambda source, target: False)
    with pytest.raises(FuseCkptError, match="has 0 bytes free, and 5 bytes are needed"):
        fetch(store, publish(store, [file(store, "a", b"12345")]), out)
    assert os.listdir(out.parent) == []
    monkeypatch.setattr(copying, "clone", lambda source, target: os.pwrite(target, b"12345", 0) == 5)
    fetch(store, publish(store, [file(store, "a", b"12345")]), out)  # where extents are shared none is needed


def test_a_file_that_outweighs_the_others_is_hashed_behind_the_writing(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, large = copying.copy, b"large" * (4 << 20)
    apart: dict[int, bool] = {}

    def noted(source: int, target: int, size: int, advance: copying.Advance, *, behind: bool, **more: bool) -> str:
        apart[size] = behind
        return real(source, target, size, advance, behind=behind, **more)

    monkeypatch.setattr(copying, "copy", noted)
    checkpoint = publish(store, [file(store, "large", large), file(store, "small", b"small")])
    fetch(store, checkpoint, out)
    assert apart == {len(large): True, 5: False}
    assert (out / "large").read_bytes() == large
    store.blob_path(blake3(large).hexdigest()).chmod(0o600)
    with store.blob_path(blake3(large).hexdigest()).open("r+b") as blob:
        blob.seek(len(large) - 1)
        blob.write(b"!")
    with pytest.raises(CorruptBlob, match="large are damaged"):
        fetch(store, checkpoint, out.parent / "again")
    assert os.listdir(out.parent) == ["out"]


@pytest.mark.parametrize("there", [False, True], ids=["new", "into another"])
def test_who_asks_for_it_has_each_name_on_the_disk(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    synced: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.readlink(f"/proc/self/fd/{fd}")))
    checkpoint = publish(store, [file(store, "d/a", b"x" * 99_999), file(store, "b", b"y")])
    for durable in (False, True):
        if there:
            (out.parent / f"{durable}").mkdir()
            (out.parent / f"{durable}" / "other").touch()
        synced.clear()
        fetch(store, checkpoint, out.parent / f"{durable}", durable=durable, force=there)
        names = {path.rpartition("partial-" + checkpoint.id)[2] for path in synced}
        above = f"{out.parent}/True" if there else str(out.parent)
        assert names == ({"", "/d", "/d/a", "/b", above, *([f"{above}/d"] if there else [])} if durable else set())


def test_a_disk_that_fills_up_leaves_nothing(store: Store, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **more: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(copying, "copy", full)
    with pytest.raises(FuseCkptError, match="out: No space left on device: make room, or choose another"):
        fetch(store, publish(store, [file(store, "a", b"12345")]), out)
    assert os.listdir(out.parent) == []


def test_a_destination_in_the_store_is_refused(store: Store) -> None:
    checkpoint = publish(store, [file(store, "a", b"x")])
    for place in (store.layout.root, store.layout.tmp / "x", store.layout.work("job") / "x/y"):
        with pytest.raises(UsageError, match="in the store"):
            fetch(store, checkpoint, place, force=True)
    assert not (store.layout.tmp / "x").exists()


def test_two_fetches_into_one_place_do_not_mix(store: Store, out: Path) -> None:
    checkpoint = publish(store, [file(store, "a", b"x")])
    refused: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(Busy) as caught:
            fetch(store, checkpoint, out)
        refused.append(str(caught.value))

    fetch(store, checkpoint, out, progress=meanwhile)
    assert len(refused) == 1
    assert tree(out) == ["a"]


def locks_late(monkeypatch: pytest.MonkeyPatch, module: str, before: Callable[[], object]) -> None:
    """Have `module` get its locks only after `before`, which another process does meanwhile."""

    def flock(fd: int, how: int) -> None:
        before()
        fcntl.flock(fd, how)

    late = SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)
    monkeypatch.setattr(sys.modules[module], "fcntl", late)


def test_what_another_fetch_has_just_finished_is_left_as_it_is(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = publish(store, [file(store, "a", b"x"), file(store, "b", b"y")])
    partial = out.parent / f"out.partial-{checkpoint.id}"
    partial.mkdir(0o700)
    (partial / "b").write_bytes(b"y")
    locks_late(monkeypatch, "fuse_ckpt.transfer.fetch", lambda: partial.rename(out))
    with pytest.raises(Busy, match="just ended"):
        fetch(store, checkpoint, out, include=["a"])
    assert tree(out) == ["b"]
    assert os.listdir(out.parent) == ["out"]


def test_a_destination_that_another_fetch_has_made_meanwhile_is_left_as_it_is(
    store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = publish(store, [file(store, "a", b"x"), file(store, "b", b"y")])
    locks_late(monkeypatch, "fuse_ckpt.transfer.fetch", out.mkdir)
    with pytest.raises(Busy, match="just been made"):
        fetch(store, checkpoint, out)
    assert os.listdir(out.parent) == ["out"]
    assert tree(out) == []


def test_progress_counts_the_bytes_that_are_taken(store: Store, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    checkpoint = publish(store, [file(store, "a", b"x" * 10), file(store, "b", b"y" * 5), file(store, "c", b"z")])
    fetch(store, checkpoint, out, include=["a", "b"], progress=lambda done, total: seen.append((done, total)))
    assert seen in ([(10, 15), (15, 15)], [(5, 15), (15, 15)])  # two files are copied at once


def test_the_longest_destination_name_works(store: Store, out: Path) -> None:
    target = out.parent / ("ü" * 127)
    fetch(store, publish(store, [file(store, "n" * 255, b"x")]), target)
    assert tree(target) == ["n" * 255]


def test_missing_parents_of_the_destination_are_made(store: Store, out: Path) -> None:
    fetch(store, publish(store, [file(store, "a", b"x")]), out / "x/y")
    assert tree(out) == ["x", "x/y", "x/y/a"]


def test_a_checkpoint_is_leased_while_it_is_fetched(store: Store, out: Path) -> None:
    checkpoint = publish(store, [file(store, "a", b"12345")])
    refused: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(CheckpointLeased, match="in use by a fetch") as caught:
            store.delete([checkpoint.id])
        refused.append(str(caught.value))

    fetch(store, checkpoint, out, progress=meanwhile)
    assert refused
    assert (out / "a").read_bytes() == b"12345"
    store.delete([checkpoint.id])


def test_a_deleted_checkpoint_cannot_be_fetched(store: Store, out: Path) -> None:
    checkpoint = publish(store, [file(store, "a", b"x")])
    store.delete([checkpoint.id])
    with pytest.raises(UnknownCheckpoint):
        fetch(store, checkpoint, out)
    assert os.listdir(out.parent) == []
