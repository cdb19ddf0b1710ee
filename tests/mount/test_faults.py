"""A bug inside a handler is one EIO for one program; the mount lives on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MountJob
from tests.mount.harness import Mount, wait_until
from tests.semantics.parity import opened, outcome, put

pytestmark = pytest.mark.mount

# fuse-ckpt with one method of the filesystem broken as long as the file that the environment names exists.
BROKEN = """
import os, sys
from fuse_ckpt.cli import main
from fuse_ckpt.vfs import Filesystem

error = {"RuntimeError": RuntimeError("a bug"), "KeyError": KeyError("lost"), "MemoryError": MemoryError(),
         "OSError": OSError("no number"), "FileNotFoundError": FileNotFoundError()}[os.environ["BREAK_WITH"]]

def breaking(name, method):
    def broken(self, *arguments, **more):
        if os.path.exists(os.environ["BREAK_IF"] + "." + name):
            raise error
        return method(self, *arguments, **more)
    return broken

for name, method in list(vars(Filesystem).items()):
    if callable(method) and not name.startswith("_"):
        setattr(Filesystem, name, breaking(name, method))
sys.exit(main(sys.argv[1:]))
"""


def use_xattr(d: Path) -> None:
    os.setxattr(d / "there.log", "user.b", b"1")


def open_and(call: Callable[[int], Any], flags: int = os.O_RDWR) -> Callable[[Path], Any]:
    def use(d: Path) -> Any:
        with opened(d / "there.log", flags) as fd:
            return call(fd)

    return use


def list_the_directory(d: Path) -> None:
    os.listdir(d / "dir")


def sync_the_directory(d: Path) -> None:
    with opened(d / "dir", os.O_RDONLY) as fd:
        os.fsync(fd)


CALLS: dict[str, Callable[[Path], Any]] = {
    "lookup": lambda d: os.stat(d / "never-seen"),
    "getattr": lambda d: os.stat(d / ".checkpoints"),  # of which the kernel remembers nothing
    "setattr": lambda d: os.chmod(d / "there.log", 0o600),
    "readlink": lambda d: os.readlink(d / "link"),
    "mknod": lambda d: os.mkfifo(d / "fifo"),
    "mkdir": lambda d: (d / "new").mkdir(),
    "unlink": lambda d: (d / "gone.log").unlink(),
    "rmdir": lambda d: (d / "dir").rmdir(),
    "symlink": lambda d: os.symlink("x", d / "new"),
    "rename": lambda d: os.rename(d / "there.log", d / "new.log"),
    "link": lambda d: os.link(d / "there.log", d / "new.log"),
    "open_now": open_and(lambda fd: None),
    "open_sealed": lambda d: os.close(os.open(d / "sealed.bin", os.O_WRONLY)),
    "create": lambda d: put(d / "new.log"),
    "read_into": open_and(lambda fd: os.pread(fd, 5, 0)),
    "write": open_and(lambda fd: os.pwrite(fd, b"x", 0)),
    "fsync": open_and(os.fsync),
    "flush": open_and(lambda fd: None),  # and close
    "opendir": list_the_directory,
    "listing": list_the_directory,
    "fsyncdir": sync_the_directory,
    "statfs": os.statvfs,
    "setxattr": use_xattr,
    "getxattr": lambda d: os.getxattr(d / "there.log", "user.a"),
    "has_no_xattrs": lambda d: os.getxattr(d / "there.log", "security.capability"),
    "listxattr": lambda d: os.listxattr(d / "there.log"),
    "removexattr": lambda d: os.removexattr(d / "there.log", "user.a"),
}
LOGGED_AS = {
    "listing": "readdir",
    "has_no_xattrs": "getxattr",
    "read_into": "read",
    "open_now": "open",
    "open_sealed": r"open(_sealed)?",
}
SILENT = {"release", "releasedir", "forget"}  # no program waits for an answer
# By the kernel: the session's own; what the relay does in its own steps; what only another user's write asks.
NOT_ASKED = {"release_all", "open", "read", "drop_set_ids"}


def prepare(mounted: Mount) -> None:
    d = mounted.path
    for name in ("there.log", "gone.log"):
        put(d / name)
    (d / "dir").mkdir()
    os.symlink("there.log", d / "link")
    os.setxattr(d / "there.log", "user.a", b"1")
    put(d / "sealed.bin")
    mounted.wait_for("sealed.bin")


def broken(mount_job: MountJob, monkeypatch: pytest.MonkeyPatch, switch: Path, error: str) -> Mount:
    monkeypatch.setenv("BREAK_WITH", error)
    monkeypatch.setenv("BREAK_IF", str(switch))
    mounted = mount_job("job", ready=False).mount(program=(sys.executable, "-c", BROKEN))
    prepare(mounted)
    return mounted


@pytest.mark.parametrize("error", ["RuntimeError", "KeyError", "MemoryError", "OSError", "FileNotFoundError"])
def test_a_bug_in_any_handler_is_one_error_and_the_mount_lives_on(
    mount_job: MountJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str
) -> None:
    mounted = broken(mount_job, monkeypatch, tmp_path / "break", error)
    expected: dict[str, Any] = dict.fromkeys(CALLS, "ENOMEM" if error == "MemoryError" else "EIO")
    if mounted.data_path == "passthrough":
        expected |= {"read_into": b"01234", "write": 1}  # the kernel moves the data
    seen = {}
    for name, call in CALLS.items():
        switch = put(tmp_path / f"break.{name}")
        seen[name] = outcome(call, mounted.path)
        switch.unlink()
        if expected[name] in ("EIO", "ENOMEM"):
            mounted.expect_log(rf"ERROR .*{LOGGED_AS.get(name, name)} failed")
    assert seen == expected
    for name in (
        "setattr",
        "readlink",
        "open_now",
        "read_into",
        "write",
        "getxattr",
        "rename",
        "unlink",
        "rmdir",
        "mkdir",
    ):
        assert outcome(CALLS[name], mounted.path) not in ("EIO", "ENOTCONN"), name
    assert os.listdir(mounted.path)


@pytest.mark.parametrize("name", sorted(SILENT))
def test_a_bug_where_nobody_waits_for_an_answer_is_logged_and_the_mount_lives_on(
    mount_job: MountJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    mounted = broken(mount_job, monkeypatch, tmp_path / "break", "RuntimeError")
    switch = put(tmp_path / f"break.{name}")
    outcome(lambda: (mounted.path / "gone.log").read_bytes())
    outcome(os.listdir, mounted.path / "dir")
    shutil.rmtree(mounted.path / "dir")
    (mounted.path / "gone.log").unlink()
    assert mounted.daemon is not None
    log = mounted.daemon.log_path
    wait_until("it is logged", lambda: f"{name} failed" in log.read_text())
    switch.unlink()
    mounted.expect_log(rf"ERROR .*{name} failed")
    put(mounted.path / "after.bin")
    mounted.wait_for("after.bin")
    mounted.leaks_expected = name == "release"


def test_every_handler_that_asks_the_filesystem_is_broken_here() -> None:
    from fuse_ckpt.vfs import Filesystem

    methods = {name for name, value in vars(Filesystem).items() if callable(value) and not name.startswith("_")}
    assert methods == set(CALLS) | SILENT | NOT_ASKED
