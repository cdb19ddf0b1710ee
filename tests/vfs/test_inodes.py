"""Node ids, lookup counts, and what is given back."""

from __future__ import annotations

import os

import pytest

from fuse_ckpt.model import InodeKey
from fuse_ckpt.vfs.inodes import ROOT, Inode, InodeTable
from tests.vfs.kernel import Kernel, Mounted


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_first_inode_is_the_root_and_stays() -> None:
    table = InodeTable()
    root = table.add("root", lambda nid: Inode(nid, "root"))
    assert root.nid == ROOT
    table.forget(ROOT, 1)
    assert table[ROOT] is root


def test_an_inode_goes_with_its_last_lookup_and_handle() -> None:
    table = InodeTable()
    table.add("root", lambda nid: Inode(nid, "root"))
    inode = table.add("a", lambda nid: Inode(nid, "a"))
    inode.lookups, inode.handles = 3, 1
    table.forget(inode.nid, 2)
    assert table.find("a") is inode
    table.forget(inode.nid, 1)
    assert table.find("a") is inode
    inode.handles = 0
    table.settle(inode)
    assert table.find("a") is None
    with pytest.raises(OSError, match="Stale"):
        table[inode.nid]
    table.forget(inode.nid, 1)


def test_a_node_id_is_never_given_twice() -> None:
    table = InodeTable()
    table.add("root", lambda nid: Inode(nid, "root"))
    first = table.add("a", lambda nid: Inode(nid, "a"))
    table.settle(first)
    assert table.add("a", lambda nid: Inode(nid, "a")).nid != first.nid


def test_a_detached_inode_is_not_found_by_its_number_again() -> None:
    table = InodeTable()
    table.add("root", lambda nid: Inode(nid, "root"))
    key = InodeKey(1, 2)
    first = table.add(key, lambda nid: Inode(nid, key))
    table.detach(first)
    second = table.add(key, lambda nid: Inode(nid, key))
    table.detach(first)
    assert table.find(key) is second
    assert table[first.nid] is first


def test_names_that_are_forgotten_leave_the_root_alone_and_no_descriptor(mount: Mounted, kernel: Kernel) -> None:
    before = descriptors()
    kernel.mkdir(b"d")
    kernel.mkdir(b"d/e")
    kernel.put(b"d/e/a", b"data")
    kernel.link(b"d/e/a", b"d/b")
    kernel.symlink(b"nowhere", b"d/s")
    assert kernel.filesystem.known_inodes == 5
    kernel.evict()
    assert (kernel.filesystem.known_inodes, kernel.filesystem.open_files, descriptors()) == (1, 0, before)
    assert kernel.get(b"d/e/a") == b"data"


def test_an_open_file_keeps_its_inode_and_an_unlinked_one_too(kernel: Kernel) -> None:
    fh = kernel.create(b"a.dat")
    kernel.unlink(b"a.dat")
    kernel.evict()
    kernel.filesystem.write(fh, 0, b"data")
    nid = kernel.handles[fh]
    kernel.release(fh)
    kernel.evict()
    with pytest.raises(OSError, match="Stale"):
        kernel.filesystem.getattr(nid)


def test_a_number_that_the_disk_uses_again_is_another_node(mount: Mounted, kernel: Kernel) -> None:
    """The kernel still holds the first one: an O_PATH descriptor needs no open file."""
    for _ in range(5):
        kernel.put(b"a.tmp", b"one")
        first = kernel.walk(b"a.tmp")
        kernel.unlink(b"a.tmp")
        kernel.put(b"a.tmp", b"two")
        assert kernel.walk(b"a.tmp") != first


def test_a_number_used_again_after_a_duplicate_was_committed_is_another_node(mount: Mounted, kernel: Kernel) -> None:
    """The last link of a duplicate is the one in pending/: the inode goes when the draft does, not with its name."""
    kernel.put(b"a.dat", b"same")
    mount.commit()
    kernel.put(b"b.dat", b"same")
    held, number = kernel.walk(b"b.dat"), (mount.work / "b.dat").stat().st_ino
    kernel.unlink(b"b.dat")
    mount.commit()
    for n in range(50):
        name = b"new%d.tmp" % n
        kernel.put(name, b"other")
        assert kernel.walk(name) != held
        if (mount.work / os.fsdecode(name)).stat().st_ino == number:
            return
    pytest.skip("this disk did not use the inode number again")


def test_a_directory_is_reached_below_its_new_name(kernel: Kernel) -> None:
    kernel.mkdir(b"d")
    kernel.mkdir(b"d/e")
    kernel.put(b"d/e/a", b"data")
    held = kernel.walk(b"d/e/a")
    kernel.rename(b"d", b"moved")
    assert kernel.walk(b"moved/e/a") == held
    assert kernel.get(b"moved/e/a") == b"data"
    kernel.evict()
    assert kernel.get(b"moved/e/a") == b"data"


def test_a_path_may_be_longer_than_any_path_can_be(kernel: Kernel) -> None:
    path = b"d" * 255
    kernel.mkdir(path)
    for _ in range(20):
        path += b"/" + b"d" * 255
        kernel.mkdir(path)
    kernel.put(path + b"/a", b"deep")
    assert kernel.get(path + b"/a") == b"deep"
