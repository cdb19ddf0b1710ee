"""S11, S14: a file of a committed checkpoint that is written again is another file; committed bytes never change."""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.mount.harness import Mount, sha256
from tests.semantics.parity import opened, put

pytestmark = pytest.mark.mount
OLD = b"old bytes" * 100_000


def append(path: Path) -> None:
    with open(path, "ab") as f:
        f.write(b"more")


def rewrite_in_place(path: Path) -> None:
    with open(path, "r+b") as f:
        f.seek(500)
        f.write(b"NEW")


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def truncate_up(path: Path) -> None:
    os.truncate(path, len(OLD) + 5000)


def truncate_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def truncate_by_descriptor(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.ftruncate(fd, 3)


def open_with_o_trunc(path: Path) -> None:
    path.write_bytes(b"all new")


def only_truncate_at_open(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def truncate_and_read(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))


def map_and_write(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapping:
        mapping[10:14] = b"MMAP"


def replace(path: Path) -> None:
    put(path.with_suffix(".tmp"), b"replaced")
    os.replace(path.with_suffix(".tmp"), path)


def remove_and_write_again(path: Path) -> None:
    path.unlink()
    put(path, b"again")


CHANGES = [
    append, rewrite_in_place, truncate, truncate_up, truncate_to_nothing, truncate_by_descriptor, open_with_o_trunc,
    only_truncate_at_open, truncate_and_read, map_and_write, replace, remove_and_write_again,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_committed_bytes_never_change(change: Callable[[Path], None], shared: Mount, tmp_path: Path) -> None:
    """S11: After that nothing committed is ever changed: ids, bytes, times. Also under readers that hold the old
    one."""
    name = f"{change.__name__}.dat"
    old = f"of {name}".encode() + OLD  # equal bytes are kept once: they would not be this file's
    path, plain = put(shared.path / name, old), put(tmp_path / name, old)
    (first,) = shared.wait_for(name)
    before = path.stat()
    with opened(path, os.O_RDONLY) as held, mmap.mmap(held, 0, prot=mmap.PROT_READ) as mapped:
        change(path)
        change(plain)
        assert path.read_bytes() == plain.read_bytes()
        assert os.pread(held, len(old) + 1, 0) == old
        assert mapped[:] == old
        for field in ("st_nlink", "st_size", "st_mode"):
            assert getattr(path.stat(), field) == getattr(plain.stat(), field)
    committed = shared.by_id(first) / name
    assert sha256(committed) == hashlib.sha256(old).hexdigest()
    assert committed.stat().st_mtime_ns == before.st_mtime_ns
    _, second = shared.wait_for(name, 2)
    assert second.id > first.id
    assert (shared.by_id(second) / name).read_bytes() == plain.read_bytes()
    assert sha256(committed) == hashlib.sha256(old).hexdigest()


def test_a_second_torch_save_to_the_same_name_is_a_second_checkpoint(mounted: Mount) -> None:
    """S11: Each save of the same name is a new id."""
    path = mounted.path / "latest.pt"
    held: list[dict[str, torch.Tensor]] = []
    for step in range(1, 5):
        torch.save({"w": torch.full((1000,), step), "step": step}, path)
        mounted.wait_for("latest.pt", step)
        held.append(torch.load(path, mmap=True))
    found = mounted.committed("latest.pt")
    assert [checkpoint.ordinal for checkpoint in found] == [1, 2, 3, 4]
    for step, (checkpoint, mapped) in enumerate(zip(found, held, strict=True), 1):
        loaded = torch.load(mounted.by_id(checkpoint) / "latest.pt")
        assert (loaded["step"], int(loaded["w"].sum())) == (step, 1000 * step)
        assert int(mapped["w"].sum()) == 1000 * step


def test_saves_of_one_name_in_quick_succession_are_each_kept(mounted: Mount) -> None:
    """S10: Before anything destroys it: a truncation of a complete, uncommitted unit seals it first."""
    for step in range(5):
        torch.save({"step": step}, mounted.path / "latest.pt")
    found = mounted.wait_for("latest.pt", 5)
    assert [torch.load(mounted.by_id(one) / "latest.pt")["step"] for one in found] == list(range(5))


def test_safetensors_saved_again_leaves_the_first_as_it_was(mounted: Mount) -> None:
    """S11: Each save of the same name is a new id."""
    path = mounted.path / "weights.safetensors"
    for step in (1, 2):
        save_file({"w": torch.full((1000,), float(step))}, path)
        mounted.wait_for(path.name, step)
    found = mounted.committed(path.name)
    assert [float(load_file(mounted.by_id(one) / path.name)["w"][0]) for one in found] == [1.0, 2.0]


@pytest.mark.parametrize("size", [None, 0], ids=["copied", "emptied"])
def test_a_break_leaves_everything_else_as_it_was(mounted: Mount, size: int | None) -> None:
    """S3, S11: A break of a sealed file carries mode, owner and xattrs over, replaces all working names of the inode,
    and restores the directory's times."""
    d = mounted.path / "models"
    (d / "other").mkdir(parents=True)
    path = put(d / "m.bin", OLD)
    os.link(path, d / "other" / "beside.log")
    os.chmod(path, 0o640)
    os.setxattr(path, "user.a", b"1")
    if os.getuid() == 0:
        os.chown(path, 1234, 4321)
    (first,) = mounted.wait_for("models/m.bin")
    os.utime(d, ns=(10**18, 10**18))
    os.utime(d / "other", ns=(10**18, 10**18))
    with open(path, "r+b" if size is None else "wb") as f:
        f.write(b"new")
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_nlink, os.getxattr(path, "user.a")) == (0o640, 2, b"1")
    if os.getuid() == 0:
        assert (status.st_uid, status.st_gid) == (1234, 4321)
    assert os.path.samefile(path, d / "other" / "beside.log")
    assert path.read_bytes() == (b"new" + OLD[3:] if size is None else b"new")
    assert d.stat().st_mtime_ns == (d / "other").stat().st_mtime_ns == 10**18
    assert sorted(os.listdir(d)) == ["m.bin", "other"]
    assert (mounted.by_id(first) / "m.bin").read_bytes() == OLD
    mounted.wait_for("models/m.bin", 2)


def test_a_file_linked_into_two_units_breaks_in_both(mounted: Mount) -> None:
    """S7: A hard link of a unit's file is a unit by its own path; S1: both names stay one file."""
    path = put(mounted.path / "one.bin", OLD)
    os.link(path, mounted.path / "two.bin")
    (one,), (two,) = mounted.wait_for("one.bin"), mounted.wait_for("two.bin")
    append(mounted.path / "two.bin")
    assert path.read_bytes() == OLD + b"more"
    assert os.path.samefile(path, mounted.path / "two.bin")
    for checkpoint, name in ((one, "one.bin"), (two, "two.bin")):
        assert (mounted.by_id(checkpoint) / name).read_bytes() == OLD


def test_a_sealed_file_keeps_its_bytes_over_a_remount(mounted: Mount) -> None:
    """S11, S5: what is committed is sealed for every later mount too."""
    path = put(mounted.path / "ckpt.bin", OLD)
    (first,) = mounted.wait_for("ckpt.bin")
    for number, end in enumerate((mounted.umount, mounted.kill), 2):
        end()
        mounted.mount()
        append(path)
        mounted.wait_for("ckpt.bin", number)
        assert (mounted.by_id(first) / "ckpt.bin").read_bytes() == OLD
    assert path.read_bytes() == OLD + b"moremore"


def test_opening_for_writing_and_writing_nothing_is_no_new_checkpoint(mounted: Mount) -> None:
    """S11: a changed member opens a new checkpoint; one that is not changed does not."""
    path = put(mounted.path / "ckpt.bin")
    mounted.wait_for("ckpt.bin")
    os.close(os.open(path, os.O_RDWR))
    os.chmod(path, 0o600)
    os.utime(path)
    put(mounted.path / "after.bin")
    mounted.wait_for("after.bin")
    mounted.umount()
    assert len(mounted.committed("ckpt.bin")) == 1
    mounted.mount()


def test_removing_and_rotating_take_a_name_away_and_nothing_else(mounted: Mount) -> None:
    """S14: Removing, overwriting or rotating in the output directory removes a name there and nothing else."""
    for step in (1, 2):
        (mounted.path / f"checkpoint-{step}").mkdir()
        torch.save({"step": step}, mounted.path / f"checkpoint-{step}" / "model.pt")
        torch.save({"step": step}, mounted.path / "latest.pt")
    mounted.umount()
    mounted.mount()
    before = mounted.digests()
    assert len(before) == 4
    shutil.rmtree(mounted.path / "checkpoint-1")
    os.rename(mounted.path / "checkpoint-2", mounted.path / "old.tmp")
    (mounted.path / "latest.pt").unlink()
    shutil.rmtree(mounted.path / "old.tmp")
    assert os.listdir(mounted.path) == []
    assert mounted.digests() == before
    mounted.umount()
    mounted.mount()
    assert mounted.digests() == before
