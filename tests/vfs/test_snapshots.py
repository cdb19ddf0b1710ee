"""The read view of a job: committed checkpoints as a read-only filesystem."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fuse_ckpt.model import NewCheckpoint, Shape, Unit
from fuse_ckpt.store import Store
from fuse_ckpt.vfs import Caller, Changes, Filesystem, browse_filesystem
from tests.vfs.kernel import CALLER, JOB, ROOT, Kernel, Mounted, run
from tests.vfs.test_output import fails_with

VIEW = b".checkpoints"


@pytest.fixture
def saved(mount: Mounted) -> Mounted:
    """checkpoints/step_1 with a nested file and a symlink, `latest` beside it, and the root's own checkpoint."""
    kernel = mount.kernel
    for path in (b"checkpoints", b"checkpoints/step_1", b"checkpoints/step_1/sub"):
        kernel.mkdir(path)
    kernel.put(b"checkpoints/step_1/model.safetensors", b"\2\0\0\0\0\0\0\0{}")
    kernel.change(b"checkpoints/step_1/model.safetensors", Changes(mode=0o600, mtime_ns=12345))
    kernel.put(b"checkpoints/step_1/sub/caf\xe9", b"nested")
    kernel.symlink(b"sub/caf\xe9", b"checkpoints/step_1/s")
    kernel.put(b"checkpoints/latest", b"step_1")
    mount.commit()
    kernel.put(b"config.json", b'{"architectures": ["A"]}')
    mount.commit()
    return mount


def ids(mount: Mounted) -> dict[str, bytes]:
    return {one.name: one.id.encode() for one in mount.store.checkpoints(JOB)}


def tree(kernel: Kernel, path: bytes) -> dict[bytes, Any]:
    """Path below `path` → bytes, target, or None for a directory."""
    found: dict[bytes, Any] = {}
    for name in kernel.listdir(path):
        mode = kernel.stat(path + b"/" + name).mode
        if stat.S_ISDIR(mode):
            found[name] = None
            found |= {name + b"/" + below: what for below, what in tree(kernel, path + b"/" + name).items()}
        else:
            found[name] = (kernel.readlink if stat.S_ISLNK(mode) else kernel.get)(path + b"/" + name)
    return found


CONTENT = {
    b"model.safetensors": b"\2\0\0\0\0\0\0\0{}", b"s": b"sub/caf\xe9", b"sub": None, b"sub/caf\xe9": b"nested",
}  # fmt: skip


def test_the_view_is_found_by_name_and_never_listed(saved: Mounted, kernel: Kernel) -> None:
    assert kernel.listdir(b"") == [b"checkpoints", b"config.json"]
    assert kernel.listdir(VIEW) == [b"by-id", b"by-name", b"latest", b"layout"]


def test_a_checkpoint_is_found_by_id_with_its_files_at_its_root(saved: Mounted, kernel: Kernel) -> None:
    assert tree(kernel, VIEW + b"/by-id/" + ids(saved)["checkpoints/step_1"]) == CONTENT


def test_a_checkpoint_is_found_by_name_and_version(saved: Mounted, kernel: Kernel) -> None:
    assert kernel.listdir(VIEW + b"/by-name") == [b"@1", b"checkpoints"]
    assert kernel.listdir(VIEW + b"/by-name/checkpoints") == [b"step_1@1"]
    assert tree(kernel, VIEW + b"/by-name/checkpoints/step_1@1") == CONTENT
    assert tree(kernel, VIEW + b"/by-name/@1") == {b"config.json": b'{"architectures": ["A"]}'}


def test_the_layout_shows_files_where_they_were_with_their_companions(saved: Mounted, kernel: Kernel) -> None:
    found = tree(kernel, VIEW + b"/layout/" + ids(saved)["checkpoints/step_1"])
    below = {b"checkpoints/step_1/" + path: what for path, what in CONTENT.items()}
    assert found == {b"checkpoints": None, b"checkpoints/latest": b"step_1", b"checkpoints/step_1": None} | below


def test_latest_points_at_the_newest_that_holds_weights(saved: Mounted, kernel: Kernel) -> None:
    assert kernel.readlink(VIEW + b"/latest") == b"by-id/" + ids(saved)["checkpoints/step_1"]


def test_there_is_no_latest_without_weights(kernel: Kernel) -> None:
    assert kernel.listdir(VIEW) == [b"by-id", b"by-name", b"layout"]
    fails_with(errno.ENOENT, kernel.stat, VIEW + b"/latest")


def test_a_json_beside_each_directory_tells_everything(saved: Mounted, kernel: Kernel) -> None:
    one = ids(saved)["checkpoints/step_1"]
    path = VIEW + b"/by-id/" + one + b".json"
    told = json.loads(kernel.get(path))
    assert told["checkpoint"]["id"] == one.decode()
    assert {entry["path"] for entry in told["entries"]} == {os.fsdecode(path) for path in CONTENT}
    assert kernel.stat(path).size == len(kernel.get(path))


def test_modes_and_times_are_the_manifests_but_readable_and_never_writable(saved: Mounted, kernel: Kernel) -> None:
    top = VIEW + b"/by-id/" + ids(saved)["checkpoints/step_1"]
    found = kernel.stat(top + b"/model.safetensors")
    assert (found.mode, found.mtime_ns, found.size) == (stat.S_IFREG | 0o444, 12345, 10)
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    assert kernel.stat(top).mode == kernel.stat(top + b"/sub").mode == stat.S_IFDIR | 0o555
    kernel.change(b"checkpoints/step_1/model.safetensors", Changes(mode=0o755, mtime_ns=7))
    assert (kernel.stat(top + b"/model.safetensors").mode, kernel.stat(top + b"/model.safetensors").mtime_ns) == (
        stat.S_IFREG | 0o444, 12345,
    )  # fmt: skip


@pytest.mark.parametrize("below", [b"", b"/by-id", b"/by-id/ID", b"/by-id/ID/sub", b"/by-name", b"/layout/ID"])
def test_every_call_that_would_write_says_erofs(saved: Mounted, kernel: Kernel, below: bytes) -> None:
    fs, one = kernel.filesystem, ids(saved)["checkpoints/step_1"]
    kernel.put(b"mine", b"data")
    mine, directory = kernel.walk(b"mine"), kernel.walk(VIEW + below.replace(b"ID", one))
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (fs.create, (directory, b"x", 0o644, CALLER)),
        (fs.mkdir, (directory, b"x", 0o755, CALLER)),
        (fs.mknod, (directory, b"x", stat.S_IFIFO | 0o644, 0, CALLER)),
        (fs.symlink, (directory, b"x", b"t", CALLER)),
        (fs.link, (mine, directory, b"x", CALLER)),
        (fs.unlink, (directory, b"sub", CALLER)),
        (fs.rmdir, (directory, b"sub", CALLER)),
        (fs.rename, (ROOT, b"mine", directory, b"x", 0, CALLER)),
        (fs.rename, (directory, b"sub", ROOT, b"x", 0, CALLER)),
        (fs.setxattr, (directory, b"user.key", b"value")),
        (fs.removexattr, (directory, b"user.key")),
    ]
    for call, arguments in calls:
        fails_with(errno.EROFS, call, *arguments)
    for changes in (Changes(mode=0o777), Changes(uid=0), Changes(mtime_ns=5), Changes(size=0)):
        fails_with(errno.EROFS, run, fs.setattr, directory, changes, None, CALLER)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("path", [b"by-id/ID/model.safetensors", b"by-id/ID.json"])
def test_opening_for_writing_says_erofs(saved: Mounted, kernel: Kernel, path: bytes, flags: int) -> None:
    path = VIEW + b"/" + path.replace(b"ID", ids(saved)["checkpoints/step_1"])
    fails_with(errno.EROFS, kernel.open, path, flags)


def test_a_file_of_the_view_cannot_be_linked_into_the_output_directory(saved: Mounted, kernel: Kernel) -> None:
    file = kernel.walk(VIEW + b"/by-name/@1/config.json")
    fails_with(errno.EXDEV, kernel.filesystem.link, file, ROOT, b"x", CALLER)


@pytest.mark.parametrize("missing", [b"x", b"by-id/x", b"by-name/x@1", b"by-name/@2", b"layout/x", b"by-id/x.json"])
def test_what_is_not_there_is_enoent(saved: Mounted, kernel: Kernel, missing: bytes) -> None:
    fails_with(errno.ENOENT, kernel.stat, VIEW + b"/" + missing)


def test_a_commit_shows_at_once(saved: Mounted, kernel: Kernel) -> None:
    held = kernel.walk(VIEW + b"/by-id")
    kernel.put(b"new.dat", b"data")
    saved.commit()
    name = ids(saved)["new.dat"]
    assert name in kernel.listdir(VIEW + b"/by-id")
    assert kernel.filesystem.lookup(held, name).mode == stat.S_IFDIR | 0o555


def test_the_doors_to_a_checkpoint_are_never_remembered_and_its_files_are(saved: Mounted, kernel: Kernel) -> None:
    one = ids(saved)["checkpoints/step_1"]
    for door in (b"", b"/by-id", b"/by-id/" + one, b"/by-name", b"/by-name/checkpoints", b"/layout/" + one):
        assert kernel.stat(VIEW + door).entry_timeout == 0
    assert kernel.stat(VIEW + b"/by-id/" + one + b"/sub").entry_timeout > 0
    assert kernel.stat(VIEW + b"/by-id/" + one + b"/sub/caf\xe9").attr_timeout > 0


def test_delete_closes_the_doors_and_leaves_a_directory_in_use_whole(saved: Mounted, kernel: Kernel) -> None:
    one = ids(saved)["checkpoints/step_1"]
    inside, by_id = kernel.walk(VIEW + b"/by-id/" + one), kernel.walk(VIEW + b"/by-id")
    saved.store.delete([one.decode()])
    for name in (one, one + b".json"):
        fails_with(errno.ENOENT, kernel.filesystem.lookup, by_id, name)
    fails_with(errno.ENOENT, kernel.filesystem.lookup, kernel.walk(VIEW + b"/layout"), one)
    fails_with(errno.ENOENT, kernel.filesystem.lookup, kernel.walk(VIEW + b"/by-name"), b"checkpoints")
    assert kernel.filesystem.getattr(inside).mode == stat.S_IFDIR | 0o555
    sub = kernel.filesystem.lookup(inside, b"sub").nid
    file = kernel.filesystem.lookup(sub, b"caf\xe9").nid
    fh = run(kernel.filesystem.open, file, os.O_RDONLY, CALLER)
    assert kernel.filesystem.read(fh, 0, 100) == b"nested"
    kernel.filesystem.release(fh)
    listing = kernel.filesystem.opendir(inside)
    assert sorted(kernel.filesystem.listing(listing, rewound=True)[1]) == [b"model.safetensors", b"s", b"sub"]
    kernel.filesystem.releasedir(listing)


def test_what_the_kernel_knows_of_a_checkpoint_is_in_use_until_it_forgets(saved: Mounted, kernel: Kernel) -> None:
    one, other = ids(saved)["checkpoints/step_1"], ids(saved)[""]
    assert list(saved.uses.held) == []
    tree(kernel, VIEW + b"/by-id/" + one)
    tree(kernel, VIEW + b"/by-name/checkpoints/step_1@1")
    kernel.get(VIEW + b"/by-id/" + other + b".json")  # our own bytes, of no blob
    assert list(saved.uses.held) == [one.decode()]
    kernel.evict()
    assert list(saved.uses.held) == []


def test_a_file_that_is_open_keeps_its_checkpoint_in_use(saved: Mounted, kernel: Kernel) -> None:
    one = ids(saved)["checkpoints/step_1"]
    fh = run(kernel.filesystem.open, kernel.walk(VIEW + b"/by-id/" + one + b"/sub/caf\xe9"), os.O_RDONLY, CALLER)
    kernel.handles[fh] = kernel.walk(VIEW + b"/by-id/" + one + b"/sub/caf\xe9")
    kernel.evict()
    assert list(saved.uses.held) == [one.decode()]
    kernel.filesystem.release(kernel.handles.popitem()[0])
    kernel.evict()
    assert list(saved.uses.held) == []


def test_the_kernel_is_told_every_name_of_a_deleted_checkpoint_that_it_may_know(saved: Mounted, kernel: Kernel) -> None:
    one = ids(saved)["checkpoints/step_1"]
    for path in (b"/by-id/", b"/layout/"):
        tree(kernel, VIEW + path + one)
    tree(kernel, VIEW + b"/by-name/checkpoints/step_1@1")
    known = {place for place, nid in kernel._names.items()}
    saved.store.delete([one.decode()])
    [deleted] = saved.store.trash()
    kernel.filesystem.views.forget(deleted)
    told = known - set(kernel._names)
    names = sorted(name for _, name in told)
    assert names.count(one) == 2
    assert names.count(b"step_1@1") == 1
    assert names.count(b"model.safetensors") == names.count(b"caf\xe9") == 3
    kernel.evict()
    assert list(saved.uses.held) == []


def test_a_deleted_checkpoint_that_nobody_used_is_not_shown_by_a_memory_of_it(saved: Mounted, kernel: Kernel) -> None:
    one = ids(saved)["checkpoints/step_1"]
    kernel.listdir(VIEW + b"/by-id")
    saved.store.delete([one.decode()])
    fails_with(errno.ENOENT, kernel.stat, VIEW + b"/by-id/" + one + b"/sub")
    assert list(saved.uses.held) == []


def test_a_failed_checkpoint_is_not_listed_but_can_be_looked_up(mount: Mounted, kernel: Kernel) -> None:
    kernel.put(b"torn.pt", b"PK\3\4torn")
    mount.commit()
    (one,) = mount.store.checkpoints(JOB)
    assert one.state == "failed"
    assert kernel.listdir(VIEW + b"/by-id") == []
    assert kernel.get(VIEW + b"/by-id/" + one.id.encode() + b"/torn.pt") == b"PK\3\4torn"


def test_two_checkpoints_that_share_a_blob_are_two_nodes(mount: Mounted, kernel: Kernel) -> None:
    for name in (b"a.dat", b"b.dat"):
        kernel.put(name, b"same")
        mount.commit()
    nodes = {kernel.walk(VIEW + b"/by-name/" + name + b"@1/" + name) for name in (b"a.dat", b"b.dat")}
    assert len(nodes) == 2
    (again,) = {kernel.walk(VIEW + b"/by-id/" + ids(mount)["a.dat"] + b"/a.dat")} & nodes
    assert again


def test_a_view_that_is_forgotten_leaves_nothing(saved: Mounted, kernel: Kernel) -> None:
    kernel.evict()
    before = len(os.listdir("/proc/self/fd"))
    tree(kernel, VIEW)
    kernel.evict()
    assert kernel.filesystem.known_inodes == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_job_sees_its_own_checkpoints_and_no_others(saved: Mounted, kernel: Kernel) -> None:
    metadata = saved.store.checkpoints(JOB)[0].metadata
    saved.store.ensure_job("other", 1)
    unit = Unit("theirs", Shape.DIRECTORY)
    theirs = saved.store.publish(NewCheckpoint("other", unit, "0", 1, metadata, ()))
    assert theirs.id.encode() not in kernel.listdir(VIEW + b"/by-id")
    fails_with(errno.ENOENT, kernel.stat, VIEW + b"/by-id/" + theirs.id.encode())
    fails_with(errno.ENOENT, kernel.stat, VIEW + b"/by-name/theirs@1")


@pytest.fixture
def store_of_two(saved: Mounted) -> Store:
    saved.store.ensure_job("other", 1)
    return saved.store


# -- the mount of the whole store -------------------------------------------------------------------------------------


@pytest.fixture
def browser(store_of_two: Store) -> Iterator[Kernel]:
    kernel = Kernel()
    fd = os.open(store_of_two.layout.root, os.O_RDONLY)
    with store_of_two.uses("browse") as uses:
        kernel.filesystem = browse_filesystem(store_of_two, fd, uses, kernel.forget_name)
        yield kernel
    os.close(fd)


def test_browse_shows_every_job(browser: Kernel) -> None:
    assert browser.listdir(b"") == [b"job", b"other"]
    assert browser.listdir(b"other/by-id") == []
    assert tree(browser, b"job/by-name/checkpoints/step_1@1") == CONTENT
    fails_with(errno.ENOENT, browser.stat, b"gone")


def test_browse_is_read_only(browser: Kernel) -> None:
    fs: Filesystem = browser.filesystem
    for directory in (ROOT, browser.walk(b"job")):
        fails_with(errno.EROFS, fs.create, directory, b"x", 0o644, Caller(0, 0, 0))
        fails_with(errno.EROFS, fs.unlink, directory, b"job", CALLER)
    assert fs.statfs().f_blocks > 0


def test_browse_shows_a_job_that_came_later(browser: Kernel, saved: Mounted) -> None:
    saved.store.ensure_job("third", 1)
    assert b"third" in browser.listdir(b"")


def test_browse_forgets_all_but_its_root(browser: Kernel) -> None:
    tree(browser, b"job")
    browser.evict()
    assert browser.filesystem.known_inodes == 1
    assert browser.listdir(b"") == [b"job", b"other"]
