"""S1 Programs need no change and no configuration: times, modes, owners, extended attributes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MountJob
from tests.mount.harness import Mount
from tests.semantics.parity import Operation, Operations, compare, opened, outcome, put, tree

pytestmark = pytest.mark.mount
operation = Operations()


@operation
def give_times(d: Path) -> Any:
    put(d / "f")
    (d / "dir").mkdir()
    seen: list[Any] = []
    for ns in (
        (315_532_800_000_000_000, 315_532_800_123_456_789),
        (1, 2),
        (4_102_444_800 * 10**9, 4_102_444_800 * 10**9 + 7),
    ):
        for path in (d / "f", d / "dir"):
            os.utime(path, ns=ns)
            seen.append((path.stat().st_atime_ns, path.stat().st_mtime_ns))
    with opened(d / "f", os.O_RDWR) as fd:
        os.utime(fd, ns=(5, 10**18))
        seen.append((os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns))
    seen.append(outcome(os.utime, d / "missing"))
    return seen


@operation
def change_modes_and_owners(d: Path) -> Any:
    put(d / "f")
    (d / "dir").mkdir()
    seen: list[Any] = []
    for mode in (0o600, 0o000, 0o4755, 0o2755, 0o1777, 0o777):
        os.chmod(d / "f", mode)
        os.chmod(d / "dir", mode)
        seen += [oct((d / "f").stat().st_mode), oct((d / "dir").stat().st_mode)]
    os.chmod(d / "f", 0o6755)
    seen += [outcome(os.chown, d / "f", os.getuid(), -1), oct((d / "f").stat().st_mode)]
    seen += [outcome(os.chown, d / "f", 1234, 4321), outcome(os.chown, d / "dir", -1, 4321)]
    with opened(d / "f", os.O_RDWR) as fd:
        seen += [outcome(os.fchmod, fd, 0o640), outcome(os.fchown, fd, -1, os.getgid()), os.fstat(fd).st_uid]
    return seen, outcome(os.access, d / "f", os.W_OK), outcome(os.chmod, d / "missing", 0o600)


@operation
def inherit_a_group(d: Path) -> Any:
    (d / "shared").mkdir()
    if os.getuid() == 0:
        os.chown(d / "shared", -1, 4321)
    os.chmod(d / "shared", 0o2775)
    put(d / "shared" / "f")
    (d / "shared" / "sub").mkdir()
    return [(p.stat().st_gid, oct(p.stat().st_mode)) for p in ((d / "shared" / "f"), (d / "shared" / "sub"))]


@operation
def extended_attributes(d: Path) -> Any:
    put(d / "f")
    (d / "dir").mkdir()
    os.symlink("f", d / "link")
    os.setxattr(d / "f", "user.a", b"1")
    os.setxattr(d / "dir", "user.b", b"")
    with opened(d / "f", os.O_RDWR) as fd:
        os.setxattr(fd, "user.c", bytes(range(256)))
    return (
        outcome(os.setxattr, d / "f", "user.a", b"2", os.XATTR_CREATE),
        outcome(os.setxattr, d / "f", "user.x", b"2", os.XATTR_REPLACE),
        outcome(os.setxattr, d / "link", "user.l", b"2", follow_symlinks=False),
        outcome(os.setxattr, d / "f", "nonsense", b""), outcome(os.setxattr, d / "missing", "user.a", b""),
        outcome(os.getxattr, d / "f", "user.a"), outcome(os.getxattr, d / "f", "user.x"),
        outcome(os.getxattr, d / "dir", "user.b"), outcome(os.getxattr, d / "link", "user.c"),
        outcome(os.removexattr, d / "f", "user.a"), outcome(os.removexattr, d / "f", "user.a"),
        sorted(os.listxattr(d / "f")), sorted(os.listxattr(d / "dir")),
    )  # fmt: skip


@operation
def attributes_of_the_system_come_and_go(d: Path) -> Any:
    put(d / "f")
    before = outcome(os.getxattr, d / "f", "security.capability")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_raw=ep, version 2
    given = outcome(os.setxattr, d / "f", "security.capability", capability)
    there = outcome(os.getxattr, d / "f", "security.capability")
    with (d / "f").open("ab") as file:
        file.write(b"more")  # takes the capability away
    return (
        before, given, there, outcome(os.getxattr, d / "f", "security.capability"),
        outcome(os.getxattr, d / "f", "system.posix_acl_access"), outcome(os.getxattr, d, "system.posix_acl_default"),
    )  # fmt: skip


@operation
def what_may_be_accessed(d: Path) -> Any:
    (d / "program").write_text("#!/bin/sh\nexit 7\n")
    seen: list[Any] = []
    for mode in (0o600, 0o711, 0o444, 0o000):
        os.chmod(d / "program", mode)
        seen.append([os.access(d / "program", wanted) for wanted in (os.F_OK, os.R_OK, os.W_OK, os.X_OK)])
        try:
            seen.append(subprocess.run([d / "program"], check=False).returncode)
        except PermissionError:
            seen.append("EACCES")
    (d / "shut").mkdir(0o000)
    inner = d / "shut" / "inner"
    return seen, outcome(os.listdir, d / "shut"), outcome(os.mkdir, inner), os.access(d / "shut", os.W_OK)


@pytest.mark.parametrize("program", operation, ids=lambda program: program.__name__)
def test_an_attribute_behaves_as_in_a_plain_directory(program: Operation, shared: Mount, tmp_path: Path) -> None:
    """S1: All of POSIX that training code was ever seen to use works, with the errno of a local disk."""
    compare(program, shared.path / program.__name__, tmp_path / "plain")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_another_user_makes_is_theirs(mount_job: MountJob, tmp_path: Path) -> None:
    """S1: All of POSIX works, with the errno of a local disk (here: owners and permissions)."""
    mounted = mount_job("job", "--allow-other")
    plain = tmp_path / "plain"
    plain.mkdir()
    code = """
import os, sys
os.setgroups([]); os.setgid(4321); os.setuid(1234)
def outcome(f, *a):
    try: return f(*a) and None
    except OSError as e: return e.errno
os.mkdir("open/mine"); open("open/mine/f", "w").write("x"); os.symlink("f", "open/mine/link")
print(outcome(open, "closed/f", "w"), outcome(open, "secret"), outcome(os.chmod, "secret", 0o777),
      outcome(os.listdir, "hidden"), outcome(os.unlink, "open/theirs"), outcome(os.chown, "open/mine/f", 0, 0))
def write(path):
    with open(path, "r+b") as file: file.write(b"x")
for change in (write, lambda path: open(path, "w").close(), lambda path: os.truncate(path, 1), os.stat):
    for mode in (0o6755, 0o2745):  # set-group-id of what the group may not execute stays
        with open("open/mine/set", "w") as file: file.write("whole")
        os.chmod("open/mine/set", mode)
        change("open/mine/set")
        print(oct(os.stat("open/mine/set").st_mode))
"""
    said = []
    for place in (mounted.path, plain):
        (place / "open").mkdir()
        os.chmod(place / "open", 0o1777)
        put(place / "open" / "theirs")
        (place / "closed").mkdir(0o755)
        (place / "hidden").mkdir(0o700)
        os.chmod(put(place / "secret"), 0o600)
        os.chmod(place, 0o755)
        run = subprocess.run([sys.executable, "-S", "-c", code], cwd=place, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        said.append(run.stdout)
    assert said[0] == said[1]
    assert tree(mounted.path) == tree(plain)
    assert (mounted.path / "open" / "mine" / "f").stat().st_uid == 1234
