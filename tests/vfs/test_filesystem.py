"""Which side a call goes to, and handles and listings."""

from __future__ import annotations

import errno
import os

import pytest

from fuse_ckpt.vfs import job_filesystem
from tests.vfs.kernel import CALLER, JOB, ROOT, Kernel, Mounted, run
from tests.vfs.test_output import fails_with

VIEW = b".checkpoints"


def test_nothing_can_be_made_removed_or_replaced_in_the_views_place(mount: Mounted, kernel: Kernel) -> None:
    fs = kernel.filesystem
    kernel.put(b"a", b"data")
    fails_with(errno.EEXIST, fs.create, ROOT, VIEW, 0o644, CALLER)
    fails_with(errno.EEXIST, fs.mkdir, ROOT, VIEW, 0o755, CALLER)
    fails_with(errno.EROFS, fs.rmdir, ROOT, VIEW, CALLER)
    fails_with(errno.EROFS, fs.rename, ROOT, VIEW, ROOT, b"x", 0, CALLER)
    fails_with(errno.EROFS, fs.rename, ROOT, b"a", ROOT, VIEW, 0, CALLER)
    assert os.listdir(mount.work) == ["a"]


def test_below_the_root_the_views_name_is_any_other(kernel: Kernel) -> None:
    kernel.mkdir(b"d")
    kernel.put(b"d/" + VIEW, b"data")
    assert kernel.get(b"d/" + VIEW) == b"data"


def test_the_view_is_listed_only_where_that_is_asked_for(mount: Mounted) -> None:
    kernel = Kernel()
    kernel.filesystem = job_filesystem(
        mount.store, JOB, mount.root_fd, mount.area, mount.uses, kernel.forget_name, show=True
    )  # fmt: skip
    kernel.mkdir(b"d")
    assert kernel.listdir(b"") == [VIEW, b"d"]
    assert kernel.listdir(b"d") == []


def test_the_input_of_another_job_is_shown_by_id_alone(mount: Mounted) -> None:
    mount.kernel.put(b"a.dat", b"data")
    mount.commit()
    (given,) = mount.store.checkpoints(JOB)
    mount.store.ensure_job("other", 1)
    kernel = Kernel()
    work = os.open(mount.store.layout.work("other"), os.O_RDONLY)
    try:
        kernel.filesystem = job_filesystem(
            mount.store, "other", work, mount.area, mount.uses, kernel.forget_name, also=given.id
        )  # fmt: skip
        assert kernel.get(VIEW + b"/by-id/" + given.id.encode() + b"/a.dat") == b"data"
        assert kernel.listdir(VIEW + b"/by-name") == []
    finally:
        os.close(work)


def test_a_listing_does_not_shift_when_names_go_while_it_is_read(kernel: Kernel) -> None:
    for n in range(10):
        kernel.put(b"%d.tmp" % n, b"data")
    fh = kernel.filesystem.opendir(ROOT)
    _, first = kernel.filesystem.listing(fh, rewound=True)
    kernel.unlink(first[0])
    assert kernel.filesystem.listing(fh, rewound=False)[1] == first
    assert len(kernel.filesystem.listing(fh, rewound=True)[1]) == 9
    run(kernel.filesystem.fsyncdir, fh, False)
    kernel.filesystem.releasedir(fh)


def test_a_directory_that_is_removed_while_it_is_listed_stays_open(kernel: Kernel) -> None:
    kernel.mkdir(b"d")
    fh = kernel.filesystem.opendir(kernel.walk(b"d"))
    kernel.rmdir(b"d")
    kernel.evict()
    assert kernel.filesystem.listing(fh, rewound=True)[1] == []
    kernel.filesystem.releasedir(fh)
    assert kernel.filesystem.known_inodes == 1


def test_the_kernel_may_let_go_of_everything_at_once(mount: Mounted, kernel: Kernel) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fh = kernel.create(b"a.dat")
    kernel.filesystem.write(fh, 0, b"data")
    kernel.filesystem.release_all()
    mount.commit()
    assert [one.name for one in mount.store.checkpoints(JOB)] == ["a.dat"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_statfs_tells_the_truth_of_the_disk(mount: Mounted, kernel: Kernel) -> None:
    assert kernel.filesystem.statfs().f_blocks == os.statvfs(mount.work).f_blocks


@pytest.mark.parametrize("data_only", [False, True])
def test_fsync_of_any_handle_is_done(kernel: Kernel, data_only: bool) -> None:
    fh = kernel.create(b"a.dat")
    run(kernel.filesystem.fsync, fh, data_only)
    kernel.release(fh)
    fh = kernel.open(b"a.dat", os.O_RDONLY)
    run(kernel.filesystem.fsync, fh, data_only)
    kernel.release(fh)


def test_a_file_whose_fsync_has_failed_is_never_silently_fine(
    mount: Mounted, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of what it could not write once: the fsync of the commit would find nothing amiss."""

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    fh = kernel.create(b"a.dat")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        fails_with(errno.EIO, run, kernel.filesystem.fsync, fh, False)
    kernel.release(fh)
    mount.commit()
    (failed,) = mount.store.checkpoints(JOB)
    assert failed.failure == "a.dat was not closed by its program: its fsync failed: Input/output error"
    kernel.put(b"a.dat", b"written anew")
    mount.commit()
    assert [str(one.state) for one in mount.store.checkpoints(JOB)] == ["failed", "available"]
