"""S1 Programs need no change and no configuration: names and directories."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness import Mount
from tests.semantics.parity import Operation, Operations, compare, opened, outcome, put

pytestmark = pytest.mark.mount
_libc = ctypes.CDLL(None, use_errno=True)
operation = Operations()
NOREPLACE, EXCHANGE = 1, 2


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@operation
def rename_over_names(d: Path) -> Any:
    put(d / "old", b"old")
    put(d / "new", b"new")
    (d / "dir").mkdir()
    (d / "empty").mkdir()
    (d / "full" / "sub").mkdir(parents=True)
    return (
        outcome(os.rename, d / "old", d / "new"),
        outcome(os.rename, d / "new", d / "dir"),
        outcome(os.rename, d / "dir", d / "new"),
        outcome(os.rename, d / "dir", d / "empty"),
        outcome(os.rename, d / "empty", d / "full"),
        outcome(os.rename, d / "full", d / "full" / "sub" / "below"),
        outcome(os.rename, d / "missing", d / "x"),
        outcome(os.rename, d / "new", d / "missing" / "x"),
        outcome(os.rename, d / "new", d / "new"),
        outcome(os.rename, d / "full", d / "moved"),
        outcome(os.rename, d / "new", d / "moved" / "sub" / "new"),
    )


@operation
def rename_open_files(d: Path) -> Any:
    put(d / "target", b"target")
    with opened(d / "f.tmp", os.O_CREAT | os.O_RDWR) as fd, opened(d / "target", os.O_RDWR) as replaced:
        os.write(fd, b"before ")
        os.rename(d / "f.tmp", d / "target")
        os.write(fd, b"after")
        os.pwrite(replaced, b"T", 0)
        return os.pread(fd, 20, 0), os.pread(replaced, 20, 0), os.fstat(replaced).st_nlink, (d / "target").read_bytes()


@operation
def rename_a_directory_with_open_files(d: Path) -> Any:
    (d / "tmp-unit" / "sub").mkdir(parents=True)
    with open(d / "tmp-unit" / "sub" / "f", "wb") as f:
        f.write(b"1")
        os.rename(d / "tmp-unit", d / "unit")
        f.write(b"2")
        put(d / "unit" / "sub" / "g")
    os.rename(d / "unit", d / "again")
    (d / "unit").mkdir()
    return outcome(os.rename, d / "again", d / "unit"), (d / "unit" / "sub" / "f").read_bytes()


@operation
def rename_with_flags(d: Path) -> Any:
    put(d / "one", b"one")
    put(d / "other", b"other")
    (d / "dir").mkdir()
    put(d / "dir" / "inside", b"inside")
    return (
        outcome(renameat2, d / "one", d / "other", NOREPLACE),
        outcome(renameat2, d / "one", d / "fresh", NOREPLACE),
        outcome(renameat2, d / "fresh", d / "other", EXCHANGE),
        outcome(renameat2, d / "fresh", d / "dir", EXCHANGE),
        outcome(renameat2, d / "fresh", d / "missing", EXCHANGE),
        outcome(renameat2, d / "fresh", d / "x", NOREPLACE | EXCHANGE),
        (d / "fresh" / "inside").read_bytes(),
    )


@operation
def link(d: Path) -> Any:
    put(d / "f")
    (d / "dir").mkdir()
    os.link(d / "f", d / "dir" / "g")
    results = [outcome(os.link, d / "f", d / "dir" / "g"), outcome(os.link, d / "dir", d / "x")]
    results += [outcome(os.link, d / "missing", d / "x"), os.path.samefile(d / "f", d / "dir" / "g")]
    put(d / "dir" / "g", b"by the other name")
    results += [(d / "f").read_bytes(), outcome(os.rename, d / "f", d / "dir" / "g"), sorted(os.listdir(d))]
    os.unlink(d / "f")
    return *results, (d / "dir" / "g").stat().st_nlink


@operation
def symlink(d: Path) -> Any:
    (d / "dir").mkdir()
    put(d / "dir" / "f")
    os.symlink("dir/f", d / "relative")
    os.symlink("../dir", d / "dir" / "up")
    os.symlink("nowhere", d / "dangling")
    os.symlink("loop", d / "loop")
    os.symlink("x" * 4000, d / "long")
    os.symlink(b"\xff\xfe", os.fsencode(d / "bytes"))
    return (
        (d / "relative").read_bytes(), (d / "dir" / "up" / "up" / "f").read_bytes(), os.readlink(d / "long"),
        outcome(os.open, d / "dangling", os.O_RDONLY), outcome(os.open, d / "loop", os.O_RDONLY),
        outcome(os.open, d / "relative", os.O_RDONLY | os.O_NOFOLLOW), outcome(os.readlink, d / "dir"),
        outcome(os.symlink, "x", d / "loop"), outcome(os.symlink, "", d / "empty"),
        outcome(os.chmod, d / "relative", 0o600), outcome(os.lchown, d / "dangling", os.getuid(), os.getgid()),
        outcome(os.utime, d / "dangling", ns=(1, 10**18), follow_symlinks=False), os.lstat(d / "dangling").st_mtime_ns,
    )  # fmt: skip


@operation
def use_every_name(d: Path) -> Any:
    names = [
        b"\xff\xfe\x80.pt",
        b"new\nline",
        b" spaced ",
        "ünïcode-模型".encode(),
        b"x" * 255,
        b"-dash",
        b"a:b*?",
    ]
    top = os.fsencode(d)
    for name in names:
        with open(os.path.join(top, name), "wb") as f:
            f.write(name)
        os.mkdir(os.path.join(top, name[:250] + b".dir"))
        os.rename(os.path.join(top, name), os.path.join(top, name[:250] + b".dir", name))
    too_long = os.path.join(top, b"x" * 256)
    refused = (
        outcome(os.mkdir, too_long),
        outcome(os.open, too_long, os.O_CREAT | os.O_WRONLY),
        outcome(os.stat, too_long),
    )
    return sorted(os.listdir(top)), refused


@operation
def remove(d: Path) -> Any:
    (d / "full" / "sub").mkdir(parents=True)
    put(d / "f")
    results = [outcome(os.rmdir, d / "full"), outcome(os.rmdir, d / "f"), outcome(os.unlink, d / "full")]
    results += [outcome(os.unlink, d / "missing"), outcome(os.rmdir, d / "missing"), outcome(os.mkdir, d / "full")]
    for number in range(300):
        put(d / "full" / f"{number}")
    listed = sorted(entry.name for entry in os.scandir(d / "full") if entry.is_file())
    with os.scandir(d / "full") as entries:  # removed while it is read
        for entry in entries:
            if entry.is_file():
                os.unlink(entry)
    left = os.listdir(d / "full")
    shutil.rmtree(d / "full")
    return *results, listed, left, sorted(os.listdir(d))


@operation
def remove_a_deep_tree_with_the_shell(d: Path) -> Any:
    deep = d / "top" / Path(*["deep"] * 30)
    deep.mkdir(parents=True)
    put(deep / "f")
    subprocess.run(
        ["sh", "-c", "cp -a top copy && mv top moved && rm -r moved && find copy | wc -l"], cwd=d, check=True
    )
    return sum(len(names) for _, _, names in os.walk(d / "copy"))


@operation
def special_files(d: Path) -> Any:
    os.mkfifo(d / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.bind(os.path.relpath(d / "socket"))  # an address has 107 bytes
    writer = subprocess.Popen(["sh", "-c", 'printf through > "$0"', d / "fifo"])
    read = (d / "fifo").read_bytes()
    writer.wait()
    return read, stat.S_IFMT((d / "fifo").stat().st_mode), stat.S_IFMT((d / "socket").stat().st_mode)


@pytest.mark.parametrize("program", operation, ids=lambda program: program.__name__)
def test_a_name_behaves_as_in_a_plain_directory(program: Operation, shared: Mount, tmp_path: Path) -> None:
    """S1: All of POSIX that training code was ever seen to use works, with the errno of a local disk."""
    compare(program, shared.path / program.__name__, tmp_path / "plain")


@pytest.mark.parametrize("move", [os.rename, os.replace, os.link], ids=lambda move: move.__name__)
def test_crossing_the_mount_says_exdev(move: Callable[..., None], shared: Mount, tmp_path: Path) -> None:
    """S1: Crossing the mount by rename says EXDEV."""
    inside, outside = put(shared.path / "inside.log"), put(tmp_path / "outside")
    assert outcome(move, inside, tmp_path / "x") == "EXDEV"
    assert outcome(move, outside, shared.path / "x.log") == "EXDEV"
    shutil.move(outside, shared.path / "moved.log")
    assert (shared.path / "moved.log").read_bytes() == b"0123456789"


def test_the_errno_of_a_name_that_is_ours_is_plain(shared: Mount) -> None:
    """S1, S18: the one name in the mount's root that a program may not have."""
    assert outcome(os.mkdir, shared.view) == "EEXIST"
    assert outcome(os.open, shared.view, os.O_CREAT | os.O_EXCL | os.O_WRONLY) == "EEXIST"
    for call in (os.rmdir, os.unlink):
        assert outcome(call, shared.view) in ("EROFS", "EISDIR", "EBUSY")
    put(shared.path / "ours.log")
    assert outcome(os.rename, shared.path / "ours.log", shared.view) in ("EROFS", "EISDIR")
    assert outcome(os.rename, shared.view, shared.path / "taken") == "EROFS"
