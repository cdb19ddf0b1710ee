"""Open files, and how a sealed file is made writable again without a committed byte being changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
import trio

from fuse_ckpt.vfs import Changes
from tests.vfs.kernel import CALLER, JOB, Kernel, Mounted, run


def committed(mount: Mounted, data: bytes = b"first", path: bytes = b"a.dat") -> bytes:
    mount.kernel.put(path, data)
    mount.commit()
    return path


def blobs(mount: Mounted) -> set[bytes]:
    return {path.read_bytes() for path in mount.store.layout.blobs.glob("*/*")}


def rewrite(kernel: Kernel, path: bytes) -> None:
    kernel.put(path, b"NEW")


def append(kernel: Kernel, path: bytes) -> None:
    fh = kernel.open(path, os.O_WRONLY | os.O_APPEND)
    kernel.filesystem.write(fh, 5, b"NEW")
    kernel.release(fh)


def update(kernel: Kernel, path: bytes) -> None:
    fh = kernel.open(path, os.O_RDWR)
    kernel.filesystem.write(fh, 1, b"NEW")
    kernel.release(fh)


def cut(kernel: Kernel, path: bytes) -> None:
    kernel.truncate(path, 2)


def grow(kernel: Kernel, path: bytes) -> None:
    kernel.truncate(path, 7)


WRITERS = [(rewrite, b"NEW"), (append, b"firstNEW"), (update, b"fNEWt"), (cut, b"fi"), (grow, b"first\0\0")]


@pytest.mark.parametrize(("write", "after"), WRITERS)
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("when", ["committed", "sealed"])
def test_a_sealed_file_that_is_written_keeps_its_bytes_in_the_store_and_for_whoever_holds_it(
    mount: Mounted, kernel: Kernel, write: Callable[[Kernel, bytes], None], after: bytes, held: bool, when: str
) -> None:
    if when == "committed":
        committed(mount)
    else:
        kernel.put(b"a.dat", b"first")
        mount.area.about_to_lose("a.dat", rewritten=False)
    reader = kernel.open(b"a.dat", os.O_RDONLY) if held else None
    write(kernel, b"a.dat")
    assert kernel.get(b"a.dat") == after
    assert kernel.stat(b"a.dat").nlink == 1
    if reader is not None:
        assert kernel.filesystem.read(reader, 0, 100) == b"first"
        kernel.release(reader)
    mount.commit()
    assert blobs(mount) == {b"first", after}
    assert mount.store.verify() == []
    assert [one.name for one in mount.store.checkpoints(JOB)] == ["a.dat", "a.dat"]


def test_a_sealed_file_that_is_opened_and_left_alone_makes_no_new_checkpoint(mount: Mounted, kernel: Kernel) -> None:
    committed(mount)
    kernel.release(kernel.open(b"a.dat", os.O_RDWR))
    kernel.release(kernel.open(b"a.dat", os.O_RDONLY))
    mount.commit()
    assert len(mount.store.checkpoints(JOB)) == 1


def test_a_broken_file_keeps_mode_and_xattrs_and_the_directory_its_time(mount: Mounted, kernel: Kernel) -> None:
    kernel.mkdir(b"checkpoint-1")
    kernel.put(b"checkpoint-1/a", b"first")
    kernel.change(b"checkpoint-1/a", Changes(mode=0o640))
    kernel.filesystem.setxattr(kernel.walk(b"checkpoint-1/a"), b"user.key", b"value")
    mount.commit()
    before = kernel.stat(b"checkpoint-1")
    update(kernel, b"checkpoint-1/a")
    after = kernel.stat(b"checkpoint-1")
    assert kernel.stat(b"checkpoint-1/a").mode & 0o7777 == 0o640
    assert kernel.filesystem.getxattr(kernel.walk(b"checkpoint-1/a"), b"user.key") == b"value"
    assert (before.mtime_ns, before.size) == (after.mtime_ns, after.size)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("remembered", [False, True])
def test_all_names_of_a_broken_file_stay_one_file(mount: Mounted, kernel: Kernel, held: bool, remembered: bool) -> None:
    kernel.mkdir(b"d")
    kernel.put(b"a.dat", b"first")
    kernel.link(b"a.dat", b"d/b")
    mount.commit()
    if not remembered:
        kernel.evict()
    reader = kernel.open(b"a.dat", os.O_RDONLY) if held else None
    update(kernel, b"a.dat")
    assert kernel.get(b"d/b") == kernel.get(b"a.dat") == b"fNEWt"
    assert kernel.stat(b"d/b").nid == kernel.stat(b"a.dat").nid
    assert kernel.stat(b"d/b").nlink == 2
    if reader is not None:
        kernel.release(reader)
    kernel.evict()
    assert kernel.filesystem.known_inodes == 1


def test_directories_met_while_names_were_searched_are_given_back(mount: Mounted, kernel: Kernel) -> None:
    kernel.mkdir(b"d")
    kernel.put(b"a.dat", b"first")
    kernel.link(b"a.dat", b"d/b")
    mount.commit()
    kernel.evict()
    descriptors = len(os.listdir("/proc/self/fd"))
    reader = kernel.open(b"a.dat", os.O_RDONLY)
    update(kernel, b"a.dat")
    kernel.release(reader)
    kernel.evict()
    assert kernel.filesystem.known_inodes == 1
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_descriptor_that_is_open_for_writing_survives_rename_and_unlink(mount: Mounted, kernel: Kernel) -> None:
    fh = kernel.create(b"a.tmp")
    kernel.rename(b"a.tmp", b"a.dat")
    kernel.filesystem.write(fh, 0, b"one")
    kernel.unlink(b"a.dat")
    kernel.filesystem.write(fh, 3, b"two")
    assert kernel.filesystem.read(fh, 0, 10) == b"onetwo"
    assert kernel.filesystem.getattr(kernel.handles[fh]).nlink == 0
    run(kernel.filesystem.fsync, fh, False)
    kernel.release(fh)
    mount.commit()
    assert mount.store.checkpoints(JOB) == []


def test_an_unlinked_file_can_still_be_truncated_and_changed_by_its_descriptor(kernel: Kernel) -> None:
    fh = kernel.create(b"a.dat")
    kernel.filesystem.write(fh, 0, b"data")
    kernel.unlink(b"a.dat")
    run(kernel.filesystem.setattr, kernel.handles[fh], Changes(size=2, mode=0o600, mtime_ns=5), fh, CALLER)
    found = kernel.filesystem.getattr(kernel.handles[fh])
    assert (found.size, found.mode & 0o7777, found.mtime_ns) == (2, 0o600, 5)


def test_the_writable_descriptor_goes_with_the_last_writer(mount: Mounted, kernel: Kernel) -> None:
    first, second = kernel.create(b"a.dat"), kernel.open(b"a.dat", os.O_RDWR)
    reader = kernel.open(b"a.dat", os.O_RDONLY)
    kernel.release(first)
    mount.commit()
    assert mount.store.checkpoints(JOB) == []
    kernel.release(second)
    mount.commit()
    assert [one.name for one in mount.store.checkpoints(JOB)] == ["a.dat"]
    kernel.release(reader)


def test_two_writers_that_break_one_seal_at_once_write_one_file(mount: Mounted, kernel: Kernel) -> None:
    committed(mount)
    nid = kernel.walk(b"a.dat")
    outcomes: list[int | str | None] = []

    async def writer() -> None:
        try:
            outcomes.append(await kernel.filesystem.open(nid, os.O_RDWR, CALLER))
        except OSError as exc:
            outcomes.append(errno.errorcode[exc.errno or 0])

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer)
            nursery.start_soon(writer)

    run(both)
    handles = [one for one in outcomes if isinstance(one, int)]
    assert all(one == "ESTALE" for one in outcomes if one not in handles)
    again = kernel.filesystem.lookup(1, b"a.dat").nid
    handles += [run(kernel.filesystem.open, again, os.O_RDWR, CALLER) for _ in range(2 - len(handles))]
    for offset, fh in enumerate(handles):
        kernel.filesystem.write(fh, offset, b"XY"[offset : offset + 1])
    for fh in handles:
        kernel.filesystem.release(fh)
    assert (mount.work / "a.dat").read_bytes() == b"XYrst"
    assert b"first" in blobs(mount)


def test_half_made_files_of_a_break_are_gone(mount: Mounted, kernel: Kernel) -> None:
    committed(mount)
    update(kernel, b"a.dat")
    assert not list(mount.store.layout.job(JOB).glob("break-*"))


def test_an_unsealed_file_is_written_in_place(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"a.tmp", b"one")
    before = (mount.work / "a.tmp").stat().st_ino
    kernel.put(b"a.tmp", b"two")
    assert (mount.work / "a.tmp").stat().st_ino == before
    assert kernel.stale == []
