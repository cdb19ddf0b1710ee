"""The working view is an ordinary directory, and the staging area hears of all that happens in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from fuse_ckpt.staging import Area
from fuse_ckpt.vfs import Caller, Changes
from fuse_ckpt.vfs.output import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.vfs.kernel import CALLER, JOB, Kernel, Mounted, run


def fails_with(number: int, call: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its number is looked at, not its words)
        call(*arguments)
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def drafts(area: Area) -> list[str]:
    return sorted(unit.name for unit in area.drafts)


def names(mount: Mounted) -> list[str]:
    return [f"{one.name}@{one.ordinal}" for one in mount.store.checkpoints(JOB)]


def test_a_fresh_output_directory_is_empty(kernel: Kernel) -> None:
    assert kernel.listdir(b"") == []


def test_what_is_there_already_is_there(mount: Mounted, kernel: Kernel) -> None:
    (mount.work / "d").mkdir()
    (mount.work / "d" / "a").write_bytes(b"data")
    assert kernel.listdir(b"d") == [b"a"]
    assert kernel.get(b"d/a") == b"data"


@pytest.mark.parametrize("name", [b"caf\xe9", b"n" * 255, b"a\nb", b"-", b" "])
def test_any_name_that_a_disk_takes_is_taken(mount: Mounted, kernel: Kernel, name: bytes) -> None:
    kernel.put(name, b"data")
    assert kernel.listdir(b"") == [name]
    assert os.listdir(os.fsencode(mount.work)) == [name]


def test_errors_are_those_of_a_local_disk(kernel: Kernel) -> None:
    kernel.mkdir(b"d")
    kernel.put(b"d/a", b"data")
    kernel.put(b"f", b"data")
    fails_with(errno.ENOENT, kernel.stat, b"gone")
    fails_with(errno.ENOTEMPTY, kernel.rmdir, b"d")
    fails_with(errno.ENOTDIR, kernel.rmdir, b"f")
    fails_with(errno.EISDIR, kernel.unlink, b"d")
    fails_with(errno.EISDIR, kernel.rename, b"f", b"d")
    fails_with(errno.ENOTDIR, kernel.rename, b"d", b"f")
    fails_with(errno.EINVAL, kernel.rename, b"d", b"d/inside")
    fails_with(errno.ENAMETOOLONG, kernel.mkdir, b"n" * 256)
    fails_with(errno.EINVAL, kernel.rename, b"d", b"e", 4)
    fails_with(errno.EEXIST, kernel.filesystem.create, 1, b"f", 0o644, CALLER)
    fails_with(errno.EEXIST, kernel.filesystem.mkdir, 1, b"d", 0o755, CALLER)
    fails_with(errno.ESTALE, kernel.filesystem.getattr, 4711)


def test_rename_may_be_told_to_replace_nothing(kernel: Kernel) -> None:
    kernel.put(b"a", b"a")
    kernel.put(b"b", b"b")
    fails_with(errno.EEXIST, kernel.rename, b"a", b"b", 1)
    kernel.rename(b"a", b"c", 1)
    assert (kernel.get(b"b"), kernel.get(b"c")) == (b"b", b"a")


def test_two_names_can_be_exchanged(kernel: Kernel) -> None:
    kernel.mkdir(b"d")
    kernel.put(b"d/a", b"in d")
    kernel.put(b"f", b"f")
    kernel.rename(b"d", b"f", 2)
    assert (kernel.get(b"f/a"), kernel.get(b"d")) == (b"in d", b"f")


def test_attributes_can_be_changed_and_are_the_disks(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a", b"data")
    found = kernel.change(b"a", Changes(mode=0o600, atime_ns=3, mtime_ns=5))
    assert (found.mode, found.atime_ns, found.mtime_ns) == (stat.S_IFREG | 0o600, 3, 5)
    on_disk = (mount.work / "a").stat()
    assert (on_disk.st_mode, on_disk.st_mtime_ns, on_disk.st_ctime_ns) == (found.mode, 5, found.ctime_ns)
    kernel.change(b"a", Changes(mtime_ns=7))
    assert (kernel.stat(b"a").atime_ns, kernel.stat(b"a").mtime_ns) == (3, 7)


def test_a_symlinks_times_change_and_not_those_of_what_it_points_at(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a", b"data")
    before = (mount.work / "a").stat().st_mtime_ns
    kernel.symlink(b"a", b"s")
    kernel.change(b"s", Changes(mtime_ns=5))
    assert ((mount.work / "s").lstat().st_mtime_ns, (mount.work / "a").stat().st_mtime_ns) == (5, before)


def test_chmod_and_chown_of_a_committed_file_leave_its_checkpoint_as_it_was(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a", b"data")
    mount.commit()
    manifest = mount.store.manifest(mount.store.checkpoints(JOB)[0].id)
    kernel.change(b"a", Changes(mode=0o600, mtime_ns=5))
    mount.commit()
    assert mount.store.manifest(manifest.checkpoint.id) == manifest
    assert names(mount) == ["a@1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_a_file_belongs_to_whoever_made_it(mount: Mounted, kernel: Kernel) -> None:
    somebody = Caller(4711, 4712, 0)
    kernel.filesystem.mkdir(1, b"d", 0o755, somebody)
    kernel.filesystem.symlink(1, b"s", b"t", somebody)
    fh, _ = kernel.filesystem.create(1, b"a", 0o644, somebody)
    kernel.filesystem.release(fh)
    owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in mount.work.iterdir()}
    assert owners == {(4711, 4712)}


def test_extended_attributes_are_the_disks(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a", b"data")
    kernel.mkdir(b"d")
    for path in (b"a", b"d"):
        nid = kernel.walk(path)
        kernel.filesystem.setxattr(nid, b"user.key", b"value")
        assert kernel.filesystem.listxattr(nid) == [b"user.key"]
        assert os.getxattr(os.fsencode(mount.work) + b"/" + path, b"user.key") == b"value"
        kernel.filesystem.removexattr(nid, b"user.key")
        fails_with(errno.ENODATA, kernel.filesystem.getxattr, nid, b"user.key")


def test_a_file_that_changed_hands_behind_our_back_is_stale_not_another(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a", b"mine")
    nid = kernel.walk(b"a")
    (mount.work / "b").write_bytes(b"other")
    (mount.work / "b").rename(mount.work / "a")
    fails_with(errno.ESTALE, run, kernel.filesystem.open, nid, os.O_RDONLY, CALLER)


# -- what staging hears -----------------------------------------------------------------------------------------------


def test_files_are_drafts_by_their_final_names(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a.pt.tmp", b"data")
    kernel.mkdir(b"checkpoint-1.tmp")
    kernel.put(b"checkpoint-1.tmp/a", b"data")
    assert drafts(mount.area) == []
    kernel.rename(b"a.pt.tmp", b"a.pt")
    kernel.rename(b"checkpoint-1.tmp", b"checkpoint-1")
    assert drafts(mount.area) == ["a.pt", "checkpoint-1"]


def test_rmtree_right_after_the_save_loses_nothing(mount: Mounted, kernel: Kernel) -> None:
    kernel.mkdir(b"checkpoint-1")
    kernel.put(b"checkpoint-1/a", b"a")
    kernel.put(b"checkpoint-1/trainer_state.json", b"{}")
    for name in kernel.listdir(b"checkpoint-1"):
        kernel.unlink(b"checkpoint-1/" + name)
    kernel.rmdir(b"checkpoint-1")
    mount.commit()
    (one,) = mount.store.checkpoints(JOB)
    assert [entry.path for entry in mount.store.manifest(one.id).entries] == ["a", "trainer_state.json"]


def test_every_save_over_the_same_name_is_kept(mount: Mounted, kernel: Kernel) -> None:
    for n in range(4):
        kernel.put(b"a.dat", b"%d" % n)
    for n in range(4, 7):
        kernel.put(b"a.dat.tmp", b"%d" % n)
        kernel.rename(b"a.dat.tmp", b"a.dat")
    kernel.truncate(b"a.dat", 0)
    mount.commit()
    kept = [mount.store.manifest(one.id).entries[0] for one in mount.store.checkpoints(JOB)]
    assert [mount.store.blob_path(entry.digest).read_bytes() for entry in kept] == [*(b"%d" % n for n in range(7)), b""]


def test_a_unit_renamed_away_before_it_was_committed_is_kept_under_its_new_name(mount: Mounted, kernel: Kernel) -> None:
    kernel.mkdir(b"checkpoint-1")
    kernel.put(b"checkpoint-1/a", b"a")
    kernel.rename(b"checkpoint-1", b"checkpoint-2")
    mount.commit()
    assert names(mount) == ["checkpoint-2@1"]


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE])
@pytest.mark.parametrize("unit", [b"checkpoint-1", b"a.dat"])
def test_a_unit_renamed_to_a_temporary_name_is_kept_under_its_old_one(
    mount: Mounted, kernel: Kernel, unit: bytes, flags: int
) -> None:
    """Some trainers move a checkpoint away before they remove it; mv(1) asks not to replace anything."""
    below = b"/a" if unit == b"checkpoint-1" else b""
    if below:
        kernel.mkdir(unit)
    kernel.put(unit + below, b"a")
    kernel.rename(unit, unit + b".tmp", flags)
    kernel.unlink(unit + b".tmp" + below)
    mount.commit()
    assert names(mount) == [f"{unit.decode()}@1"]


@pytest.mark.parametrize("unit", [b"best", b"a.dat"])
def test_what_an_exchange_gives_a_temporary_name_is_kept(mount: Mounted, kernel: Kernel, unit: bytes) -> None:
    below = b"/a" if unit == b"best" else b""
    for name in (unit, unit + b".tmp"):
        if below:
            kernel.mkdir(name)
        kernel.put(name + below, name)
    kernel.rename(unit, unit + b".tmp", RENAME_EXCHANGE)
    kernel.unlink(unit + b".tmp" + below)
    mount.commit()
    kept = [mount.store.manifest(one.id).entries[0] for one in mount.store.checkpoints(JOB)]
    assert [mount.store.blob_path(entry.digest).read_bytes() for entry in kept] == [unit, unit + b".tmp"]


def test_a_file_opened_under_one_name_is_closed_under_another(mount: Mounted, kernel: Kernel) -> None:
    kernel.mkdir(b"d.tmp")
    fh = kernel.create(b"d.tmp/a")
    kernel.filesystem.write(fh, 0, b"data")
    kernel.rename(b"d.tmp", b"d")
    mount.commit()
    assert names(mount) == []
    kernel.release(fh)
    mount.commit()
    assert names(mount) == ["d@1"]


def test_link_counts_are_what_training_made_of_them(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a.dat", b"data")
    kernel.link(b"a.dat", b"b.dat")
    counts = [kernel.stat(b"a.dat").nlink]
    mount.area.about_to_lose("a.dat", rewritten=False)  # its links are in pending/ now
    counts.append(kernel.stat(b"a.dat").nlink)
    mount.commit()
    counts.append(kernel.stat(b"a.dat").nlink)
    kernel.unlink(b"b.dat")
    counts.append(kernel.stat(b"a.dat").nlink)
    assert counts == [2, 2, 2, 1]
