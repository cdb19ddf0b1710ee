"""Files of this machine become checkpoints of no job: looked at, copied, never linked, never followed out."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from pathlib import Path

import pytest

from fuse_ckpt.errors import Busy, FuseCkptError, InvalidName, NotFound, UsageError
from fuse_ckpt.model import Checkpoint, Kind, Origin, Shape, State
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import LocalSource, copying, fetch, push
from tests.transfer.test_fetch import interrupted_after, locks_late, tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "sub/empty").mkdir(parents=True)
    (top / "config.json").write_bytes(b'{"architectures": ["Tiny"], "transformers_version": "5.0"}')
    (top / "sub/weights.bin").write_bytes(os.urandom(5000))
    (top / "sub/weights.bin").chmod(0o4711)
    (top / "latest").symlink_to("sub/weights.bin")
    os.utime(top / "sub/weights.bin", ns=(1, 1_600_000_000_000_000_007))
    return top


def pushed(store: Store, path: Path, name: str = "base", *, follow: bool = False, force: bool = False) -> Checkpoint:
    return push(store, name, LocalSource(path, store.layout.root, follow=follow), force=force)


def incoming(store: Store) -> list[str]:
    return os.listdir(store.layout.incoming)


def test_a_directory_becomes_a_checkpoint_with_its_metadata(store: Store, source: Path) -> None:
    found = pushed(store, source)
    assert (found.job, found.name, found.ordinal, found.shape) == ("", "base", 1, Shape.DIRECTORY)
    assert (found.state, found.origin) == (State.AVAILABLE, Origin(local=(str(source),)))
    assert (found.metadata.model, found.metadata.version, found.metadata.inference_ready) == ("Tiny", "5.0", True)
    assert found.created_ns == (source / "config.json").stat().st_mtime_ns
    entries = {entry.path: entry for entry in store.manifest(found.id).entries}
    assert {path: entry.kind for path, entry in entries.items()} == {
        "config.json": Kind.FILE,
        "latest": Kind.SYMLINK,
        "sub/empty": Kind.DIRECTORY,
        "sub/weights.bin": Kind.FILE,
    }
    weights = entries["sub/weights.bin"]
    assert (weights.mode, weights.mtime_ns) == (0o711, 1_600_000_000_000_000_007)
    assert store.resolve("base") == found
    assert store.verify() == []
    assert incoming(store) == []


def test_a_file_becomes_a_flat_checkpoint(store: Store, source: Path) -> None:
    found = pushed(store, source / "sub/weights.bin", "step_500")
    assert (found.shape, found.files, found.metadata.step) == (Shape.FLAT, 1, 500)
    (entry,) = store.manifest(found.id).entries
    assert entry.path == "weights.bin"


def test_a_step_that_only_the_directory_is_called_by_is_not_lost(store: Store, source: Path) -> None:
    assert pushed(store, source).metadata.step is None
    source.rename(source.parent / "checkpoint-1500")
    assert pushed(store, source.parent / "checkpoint-1500").metadata.step == 1500
    assert pushed(store, source.parent / "checkpoint-1500", "step_7").metadata.step == 7


def test_what_was_pushed_is_what_is_fetched(store: Store, source: Path, tmp_path: Path) -> None:
    fetch(store, pushed(store, source), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(source)
    assert (tmp_path / "out/sub/weights.bin").read_bytes() == (source / "sub/weights.bin").read_bytes()
    assert os.readlink(tmp_path / "out/latest") == "sub/weights.bin"


def test_the_users_files_stay_theirs(store: Store, source: Path) -> None:
    before = {path: path.lstat() for path in source.rglob("*")}
    found = pushed(store, source)
    entry = next(entry for entry in store.manifest(found.id).entries if entry.path == "sub/weights.bin")
    blob = store.blob_path(entry.digest)
    assert blob.stat().st_ino != (source / "sub/weights.bin").stat().st_ino
    assert stat.S_IMODE(blob.stat().st_mode) == 0o400
    after = {path: path.lstat() for path in source.rglob("*")}
    assert [(s.st_ino, s.st_mtime_ns, s.st_nlink, s.st_mode) for s in after.values()] == [
        (s.st_ino, s.st_mtime_ns, s.st_nlink, s.st_mode) for s in before.values()
    ]
    (source / "sub/weights.bin").write_bytes(b"changed")
    assert store.verify() == []


def test_the_same_name_again_is_its_next_version(store: Store, source: Path) -> None:
    first = pushed(store, source)
    (source / "config.json").write_bytes(b'{"architectures": ["Other"]}')
    second = pushed(store, source)
    assert (second.ordinal, store.resolve("base"), store.resolve("base@1")) == (2, second, first)
    blobs = [path for path in store.layout.blobs.rglob("*") if path.is_file()]
    assert len(blobs) == 3  # the weights are kept once


@pytest.mark.parametrize(
    "name", ["", "a/b", "../x", "a:b", "a@1", "-x", ".x", " x", "x\ny", "0199fe", "DEADBEEF", "x" * 201, "\x1b[31m"]
)
def test_a_name_that_could_mean_something_else_is_refused(store: Store, source: Path, name: str) -> None:
    with pytest.raises(InvalidName) as caught:
        pushed(store, source, name)
    assert "\n" not in str(caught.value)
    assert store.checkpoints() == []


@pytest.mark.parametrize("name", ["llama-3", "best model", "ñandú", "v1.0", "bee", "x" * 200])
def test_other_names_are_references(store: Store, source: Path, name: str) -> None:
    assert store.resolve(name if pushed(store, source, name) else "") == store.checkpoints()[0]


def test_a_symlink_that_leads_out_is_refused_or_followed(store: Store, source: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(b"outside")
    for target in ("../outside.bin", str(tmp_path / "outside.bin"), "sub/../../outside.bin"):
        (source / "out.bin").unlink(missing_ok=True)
        (source / "out.bin").symlink_to(target)
        with pytest.raises(UsageError, match="--follow-symlinks"):
            pushed(store, source)
    found = pushed(store, source, follow=True)
    entry = next(entry for entry in store.manifest(found.id).entries if entry.path == "out.bin")
    assert (entry.kind, store.blob_path(entry.digest).read_bytes()) == (Kind.FILE, b"outside")
    assert store.manifest(found.id).entries != ()
    (source / "out.bin").unlink()
    (source / "out.bin").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="no file"):
        pushed(store, source, follow=True)
    (source / "out.bin").unlink()
    (source / "out.bin").symlink_to("/nowhere/at/all")
    with pytest.raises(UsageError, match="leads nowhere"):
        pushed(store, source, follow=True)


def test_a_symlink_within_stays_one_even_if_it_dangles(store: Store, source: Path) -> None:
    (source / "sub/dangling").symlink_to("../not-there")
    found = pushed(store, source)
    targets = {entry.path: entry.target for entry in store.manifest(found.id).entries if entry.kind is Kind.SYMLINK}
    assert targets == {"latest": "sub/weights.bin", "sub/dangling": "../not-there"}


def test_devices_pipes_and_sockets_are_refused(store: Store, source: Path) -> None:
    odd = source / "sub/odd"
    os.mkfifo(odd)
    with pytest.raises(UsageError, match=r"sub/odd is neither file"):
        pushed(store, source)
    odd.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(odd))
        with pytest.raises(UsageError, match=r"sub/odd is neither file"):
            pushed(store, source)
    with pytest.raises(UsageError, match="no file"):
        pushed(store, Path("/dev/null"))
    assert store.checkpoints() == []


def test_a_source_that_is_not_there_or_empty_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="No such file"):
        pushed(store, tmp_path / "nothing")
    (tmp_path / "hollow/deep").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no file"):
        pushed(store, tmp_path / "hollow")
    with pytest.raises(UsageError, match="the store"):
        pushed(store, tmp_path)


def test_what_is_not_whole_is_refused_or_kept_as_failed(store: Store, source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"\xff\xff")
    with pytest.raises(FuseCkptError, match=r"model\.safetensors is cut off.*--force"):
        pushed(store, source)
    assert (store.checkpoints(), incoming(store)) == ([], [])
    found = pushed(store, source, force=True)
    assert found.state is State.FAILED
    assert "model.safetensors is cut off" in (found.failure or "")


def test_a_file_that_changes_meanwhile_is_refused(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = copying.copy

    def writing(fd: int, target: int, size: int, advance: copying.Advance) -> str:
        with (source / "sub/weights.bin").open("ab") as file:
            file.write(b"more")
        return real(fd, target, size, advance)

    monkeypatch.setattr(copying, "copy", writing)
    with pytest.raises(FuseCkptError, match="changed while it was pushed"):
        pushed(store, source)
    assert (store.checkpoints(), incoming(store)) == ([], [])


def _same_time(one: Path, other: Path) -> bool:
    return one.stat().st_mtime_ns == other.stat().st_mtime_ns


def test_an_interrupted_push_is_gone_on_with(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "a.bin").write_bytes(b"first")
    with pytest.raises(KeyboardInterrupt):
        push(store, "base", LocalSource(source, store.layout.root), progress=interrupted_after(100))
    (left,) = store.layout.incoming.iterdir()
    names = {"a.bin", "config.json", "sub/weights.bin"}  # several at a time: which were finished is left to chance
    taken = {one for one in names if (left / one).exists() and _same_time(left / one, source / one)}
    assert "sub/weights.bin" not in taken
    copied: list[str] = []
    real = LocalSource.read_into

    def counted(self: LocalSource, entry: object, target: int, advance: copying.Advance) -> str:
        copied.append(entry.path)  # type: ignore[attr-defined]
        return real(self, entry, target, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(LocalSource, "read_into", counted)
    pushed(store, source)
    assert set(copied) == names - taken
    assert incoming(store) == []
    assert store.verify() == []


def test_a_changed_file_is_copied_anew_after_an_interruption(store: Store, source: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        push(store, "base", LocalSource(source, store.layout.root), progress=interrupted_after(5058))
    (source / "config.json").write_bytes(b'{"architectures": ["Later"]}')
    assert pushed(store, source).metadata.model == "Later"


def test_a_push_that_opened_the_spool_of_one_that_has_just_ended_is_busy(
    store: Store, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end() -> None:
        (spool,) = store.layout.incoming.iterdir()
        spool.rmdir()

    locks_late(monkeypatch, "fuse_ckpt.transfer.push", end)
    with pytest.raises(Busy, match="just ended"):
        pushed(store, source)
    assert incoming(store) == []


def test_the_same_push_twice_at_once_is_busy(store: Store, source: Path) -> None:
    refused: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(Busy) as caught:
            pushed(store, source)
        refused.append(str(caught.value))

    push(store, "base", LocalSource(source, store.layout.root), progress=meanwhile)
    assert refused
    assert len(store.checkpoints()) == 1


def test_recover_leaves_a_push_alone(store: Store, source: Path) -> None:
    def meanwhile(done: int, total: int) -> None:
        store.recover()

    push(store, "base", LocalSource(source, store.layout.root), progress=meanwhile)
    assert store.verify() == []


def test_a_spool_that_nobody_came_back_for_is_swept_away(store: Store, source: Path) -> None:
    old, young = store.layout.incoming / "old", store.layout.incoming / "young"
    for path in (old, young):
        path.mkdir()
        (path / "half").write_bytes(b"x")
    os.utime(old, (1, 1))
    pushed(store, source)
    assert incoming(store) == ["young"]


def test_a_full_disk_leaves_nothing(store: Store, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(copying, "copy", full)
    with pytest.raises(FuseCkptError, match=r"The store .*: No space left on device: make room"):
        pushed(store, source)
    assert (store.checkpoints(), incoming(store)) == ([], [])


def test_a_file_replaced_by_a_symlink_meanwhile_is_not_followed(store: Store, source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    found = LocalSource(source, store.layout.root)
    (source / "sub/weights.bin").unlink()
    (source / "sub/weights.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        push(store, "base", found)
    (source / "sub/weights.bin").unlink()
    (source / "sub/empty").rmdir()
    (source / "sub").rmdir()
    (source / "sub").symlink_to(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"secret")
    with pytest.raises(OSError, match="Not a directory"):
        push(store, "base", found)
    assert (store.checkpoints(), incoming(store)) == ([], [])


def test_undecodable_names_are_kept(store: Store, source: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.txt")
    (source / name).write_bytes(b"x")
    fetch(store, pushed(store, source), tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == b"x"
    assert json.loads(store.layout.manifest(store.checkpoints()[0].id).read_text())
