"""What the relay answers, without a kernel: bytes in, bytes out."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from fuse_ckpt.fuse import protocol as p
from fuse_ckpt.fuse.answers import Answers, Request
from fuse_ckpt.vfs import Attributes, Filesystem
from fuse_ckpt.vfs.handles import Handle, Handles, ViewFile

FILE = Attributes(
    nid=9, mode=stat.S_IFREG | 0o640, nlink=2, uid=1000, gid=100, size=1 << 40, mtime_ns=1_700_000_000_000_000_001,
    atime_ns=5, ctime_ns=2_000_000_000, blocks=8, entry_timeout=3600.0, attr_timeout=1.5,
)  # fmt: skip


class FakeFilesystem:
    """Files by node id, and what was asked of them."""

    def __init__(self, lend: Callable[[int], int]) -> None:
        self.handles = Handles()
        self.handles.lend = lend
        self.attributes = FILE
        self.asked: list[tuple[Any, ...]] = []
        self.sealed = False
        self.values = {b"user.a": b"12345"}
        self.inode = SimpleNamespace(nid=9, opens=0, backing_id=0, backing=SimpleNamespace(unsettled=False))
        self.fd: int | None = None

    def lookup(self, parent: int, name: bytes) -> Attributes:
        self.asked.append(("lookup", parent, name))
        return self.attributes

    def getattr(self, nid: int) -> Attributes:
        return self.attributes

    def has_no_xattrs(self, nid: int) -> bool:
        return not self.values

    def getxattr(self, nid: int, name: bytes) -> bytes:
        if name not in self.values:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return self.values[name]

    def read_into(self, fh: int, offset: int, buffer: memoryview) -> int:
        return self.handles[fh].read_into(offset, buffer)

    def write(self, fh: int, offset: int, data: bytes) -> int:
        return self.handles[fh].write(offset, data)

    def drop_set_ids(self, fh: int) -> None:
        self.handles[fh].drop_set_ids()

    def forget(self, nid: int, count: int) -> None:
        self.asked.append(("forget", nid, count))

    def open_now(self, nid: int, flags: int, caller: Any) -> int | None:
        self.asked.append(("open", nid, flags, caller.uid, caller.gid, caller.task))
        return None if self.sealed else self._opened(flags)

    async def open_sealed(self, nid: int, flags: int, caller: Any) -> int:
        return self._opened(flags)

    def create(self, parent: int, name: bytes, mode: int, caller: Any) -> tuple[int, Attributes]:
        self.asked.append(("create", parent, name, mode))
        return self._opened(os.O_RDWR), self.attributes

    def flush(self, fh: int, task: int) -> None:
        self.asked.append(("flush", fh, task))

    def release(self, fh: int) -> None:
        self.asked.append(("release", fh))

    def _opened(self, flags: int) -> int:
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        inode = cast(Any, self.inode)
        if self.fd is None:
            return self.handles.add(ViewFile(inode, None, b"bytes of our own"))
        return self.handles.add(Handle(inode, self.fd, writable))


class Kernel:
    """Asks as the kernel does, and hears what it is told."""

    def __init__(self, filesystem: FakeFilesystem) -> None:
        self.heard: list[bytes] = []
        self._answers = Answers(cast(Filesystem, filesystem), self.heard.append)

    def ask(self, opcode: int, body: bytes = b"", *, nodeid: int = 9) -> bytes:
        """The answer without its header, which is looked at here."""
        reply = self._answers.table[opcode](Request(77, nodeid, 1000, 100, 4242, memoryview(body)))
        assert reply is not None
        whole = bytes(reply) if isinstance(reply, bytes | memoryview) else trio.run(reply)
        length, error, unique = p.OUT_HEADER.unpack_from(whole)
        assert (length, unique) == (len(whole), 77)
        if error:
            raise OSError(-error, os.strerror(-error))
        return whole[p.OUT_HEADER.size :]

    def tell(self, opcode: int, body: bytes, *, nodeid: int = 9) -> None:
        """What needs no answer, and gets none."""
        assert self._answers.table[opcode](Request(77, nodeid, 0, 0, 0, memoryview(body))) is None


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[FakeFilesystem]:
    filesystem = FakeFilesystem(lambda fd: 5)
    filesystem.fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    yield filesystem
    os.close(filesystem.fd)


@pytest.fixture
def kernel(filesystem: FakeFilesystem) -> Kernel:
    return Kernel(filesystem)


def attr(data: bytes) -> dict[str, int]:
    names = (
        "ino", "size", "blocks", "atime", "mtime", "ctime", "ans", "mns", "cns", "mode", "nlink", "uid", "gid", "rdev",
        "blksize", "flags",
    )  # fmt: skip
    return dict(zip(names, struct.unpack("<QQQqqqIIIIIIIIII", data), strict=True))


def test_an_entry_carries_the_node_the_timeouts_and_the_attributes(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    reply = kernel.ask(p.LOOKUP, b"m.bin\0", nodeid=1)
    assert filesystem.asked == [("lookup", 1, b"m.bin")]
    assert len(reply) == 128
    assert p.ENTRY_OUT.unpack_from(reply) == (9, 0, 3600, 1, 0, 500_000_000)
    found = attr(reply[40:])
    assert (found["ino"], found["size"], found["blocks"], found["nlink"]) == (9, 1 << 40, 8, 2)
    assert (found["mode"], found["uid"], found["gid"]) == (stat.S_IFREG | 0o640, 1000, 100)
    assert (found["mtime"], found["mns"]) == (1_700_000_000, 1)
    assert (found["atime"], found["ans"], found["ctime"], found["cns"]) == (0, 5, 2, 0)


@pytest.mark.parametrize("ns", [-1, -(10**9), -(10**18) - 1, 0, 2**63 - 1])
def test_a_time_before_1970_is_negative_with_a_positive_fraction(
    filesystem: FakeFilesystem, kernel: Kernel, ns: int
) -> None:
    filesystem.attributes = Attributes(9, stat.S_IFREG, 1, 0, 0, 0, ns, ns, ns)
    reply = kernel.ask(p.GETATTR)
    assert len(reply) == 104
    found = attr(reply[16:])
    for second, fraction in (("mtime", "mns"), ("atime", "ans"), ("ctime", "cns")):
        assert 0 <= found[fraction] < 10**9
        assert found[second] * 10**9 + found[fraction] == ns


@pytest.mark.parametrize(("major", "minor"), [(1, 3), (8, 0), (259, 300), (0xFFF, 0xFFFFF), (0, 0)])
def test_a_device_number_is_packed_as_the_kernel_unpacks_it(
    filesystem: FakeFilesystem, kernel: Kernel, major: int, minor: int
) -> None:
    rdev = os.makedev(major, minor)
    filesystem.attributes = Attributes(9, stat.S_IFCHR, 1, 0, 0, 0, 0, 0, 0, rdev=rdev)
    packed = attr(kernel.ask(p.GETATTR)[16:])["rdev"]
    assert ((packed & 0xFFF00) >> 8, (packed & 0xFF) | (packed >> 12 & 0xFFF00)) == (major, minor)  # new_decode_dev


def test_what_is_forgotten_is_told_name_by_name_and_has_no_answer(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    kernel.tell(p.FORGET, struct.pack("<Q", 3))
    batch = struct.pack("<II", 2, 0) + struct.pack("<QQQQ", 4, 1, 5, 2)
    kernel.tell(p.BATCH_FORGET, batch + b"left over of a longer request")
    assert filesystem.asked == [("forget", 9, 3), ("forget", 4, 1), ("forget", 5, 2)]


UNLENT = {os.O_RDONLY: p.FOPEN_KEEP_CACHE, os.O_RDWR: p.FOPEN_KEEP_CACHE, os.O_WRONLY: p.FOPEN_DIRECT_IO}


@pytest.mark.parametrize("how", UNLENT)
@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize("sealed", [True, False])
def test_an_open_file_is_passed_through_or_cached_or_only_written(
    filesystem: FakeFilesystem, kernel: Kernel, lent: bool, sealed: bool, how: int
) -> None:
    filesystem.sealed = sealed
    filesystem.handles.lend = lambda fd: 5 if lent else 0
    fh, flags, backing = p.OPEN_OUT.unpack(kernel.ask(p.OPEN, struct.pack("<II", how, 0)))
    assert filesystem.asked == [("open", 9, how, 1000, 100, 4242)]
    assert (fh, backing) == (1, 5 if lent else 0)
    assert flags & ~p.FOPEN_NOFLUSH == (p.FOPEN_PASSTHROUGH if lent else UNLENT[how])


def test_all_opens_of_an_inode_carry_the_one_backing_id_of_its_first(
    filesystem: FakeFilesystem, kernel: Kernel
) -> None:
    lent = iter([5, 6])
    filesystem.handles.lend = lambda fd: next(lent)
    found = [p.OPEN_OUT.unpack(kernel.ask(p.OPEN, struct.pack("<II", flags, 0))) for flags in (0, 1, 2)]
    assert [(fh, backing) for fh, _, backing in found] == [(1, 5), (2, 5), (3, 5)]


def test_only_a_writers_close_is_asked_about(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    for flags, wanted in ((os.O_RDONLY, False), (os.O_WRONLY, True), (os.O_RDWR, True)):
        _, said, _ = p.OPEN_OUT.unpack(kernel.ask(p.OPEN, struct.pack("<II", flags, 0)))
        assert bool(said & p.FOPEN_NOFLUSH) is not wanted


def test_a_created_file_is_an_entry_and_an_open_file(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    body = struct.pack("<IIII", os.O_RDWR | os.O_CREAT, stat.S_IFREG | 0o4755, 0o22, 0) + b"m.bin\0"
    reply = kernel.ask(p.CREATE, body, nodeid=1)
    assert filesystem.asked == [("create", 1, b"m.bin", 0o4755)]
    assert len(reply) == 144
    assert p.ENTRY_OUT.unpack_from(reply)[0] == 9
    assert p.OPEN_OUT.unpack_from(reply, 128) == (1, p.FOPEN_PASSTHROUGH, 5)


def test_a_close_is_told_with_the_task_that_closes(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    assert kernel.ask(p.FLUSH, struct.pack("<QIIQ", 3, 0, 0, 0)) == b""
    assert kernel.ask(p.RELEASE, struct.pack("<QIIQ", 3, 0, 0, 0)) == b""
    assert filesystem.asked == [("flush", 3, 4242), ("release", 3)]


def test_an_attribute_is_given_measured_or_refused_by_the_room_there_is(kernel: Kernel) -> None:
    assert kernel.ask(p.GETXATTR, struct.pack("<II", 0, 0) + b"user.a\0") == struct.pack("<II", 5, 0)
    assert kernel.ask(p.GETXATTR, struct.pack("<II", 5, 0) + b"user.a\0") == b"12345"
    with pytest.raises(OSError, match="range") as refused:
        kernel.ask(p.GETXATTR, struct.pack("<II", 4, 0) + b"user.a\0")
    assert refused.value.errno == errno.ERANGE
    with pytest.raises(OSError, match="No data"):
        kernel.ask(p.GETXATTR, struct.pack("<II", 0, 0) + b"security.capability\0")


def test_of_a_file_without_any_attribute_only_what_the_system_asks_for_is_refused_unasked(
    filesystem: FakeFilesystem, kernel: Kernel
) -> None:
    filesystem.values.clear()
    filesystem.getxattr = lambda nid, name: name  # type: ignore[method-assign]
    for name in (b"security.capability", b"system.posix_acl_access"):
        with pytest.raises(OSError, match="No data"):
            kernel.ask(p.GETXATTR, struct.pack("<II", 0, 0) + name + b"\0")
    assert kernel.ask(p.GETXATTR, struct.pack("<II", 99, 0) + b"user.a\0") == b"user.a"


@pytest.mark.parametrize(
    ("mode", "mask", "allowed"),
    [
        (stat.S_IFREG | 0o600, os.R_OK | os.W_OK, True),
        (stat.S_IFREG | 0o600, os.X_OK, False),
        (stat.S_IFREG | 0o610, os.X_OK, True),
        (stat.S_IFDIR | 0o600, os.X_OK, True),
        (stat.S_IFREG | 0o000, os.R_OK | os.W_OK, True),
    ],
)
def test_whom_modes_do_not_bind_may_do_all_but_execute_what_nobody_may(
    filesystem: FakeFilesystem, kernel: Kernel, mode: int, mask: int, allowed: bool
) -> None:
    filesystem.attributes = replace(FILE, mode=mode)
    if allowed:
        assert kernel.ask(p.ACCESS, struct.pack("<II", mask, 0)) == b""
    else:
        with pytest.raises(PermissionError):
            kernel.ask(p.ACCESS, struct.pack("<II", mask, 0))


def test_holes_are_searched_in_the_file_itself(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    assert filesystem.fd is not None
    os.pwrite(filesystem.fd, b"x" * 4096, 1 << 20)
    kernel.ask(p.OPEN, struct.pack("<II", os.O_RDONLY, 0))
    for offset, whence, expected in (
        (0, os.SEEK_DATA, 1 << 20),
        (0, os.SEEK_HOLE, 0),
        (1 << 20, os.SEEK_HOLE, 0x101000),
    ):
        reply = kernel.ask(p.LSEEK, struct.pack("<QQII", 1, offset, whence, 0))
        assert p.LSEEK_OUT.unpack(reply) == (expected,)


def test_space_is_reserved_and_ranges_are_copied_in_the_files_themselves(
    filesystem: FakeFilesystem, kernel: Kernel
) -> None:
    assert filesystem.fd is not None
    os.pwrite(filesystem.fd, b"source", 0)
    kernel.ask(p.OPEN, struct.pack("<II", os.O_RDWR, 0))
    assert kernel.ask(p.FALLOCATE, struct.pack("<QQQII", 1, 0, 10_000, 0, 0)) == b""
    assert os.fstat(filesystem.fd).st_size == 10_000
    reply = kernel.ask(p.COPY_FILE_RANGE, struct.pack("<QQQQQQQ", 1, 2, 9, 1, 5000, 4, 0))
    assert p.WRITE_OUT.unpack(reply) == (4, 0)
    assert os.pread(filesystem.fd, 4, 5000) == b"urce"


def test_bytes_of_our_own_have_no_holes_and_no_extents(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    filesystem_fd, filesystem.fd = filesystem.fd, None
    kernel.ask(p.OPEN, struct.pack("<II", os.O_RDONLY, 0))
    filesystem.fd = filesystem_fd
    for whence, expected in ((os.SEEK_DATA, 3), (os.SEEK_HOLE, len(b"bytes of our own"))):
        assert p.LSEEK_OUT.unpack(kernel.ask(p.LSEEK, struct.pack("<QQII", 1, 3, whence, 0))) == (expected,)
    with pytest.raises(OSError, match="not supported"):
        kernel.ask(p.COPY_FILE_RANGE, struct.pack("<QQQQQQQ", 1, 0, 9, 1, 0, 10, 0))


def test_no_file_is_a_terminal(kernel: Kernel) -> None:
    with pytest.raises(OSError, match="ioctl") as refused:
        kernel.ask(p.IOCTL, bytes(32))
    assert refused.value.errno == errno.ENOTTY


@pytest.mark.parametrize(
    ("opcode", "body"), [(p.LSEEK, bytes(24)), (p.FALLOCATE, bytes(32)), (p.COPY_FILE_RANGE, bytes(56))]
)
def test_what_is_not_open_is_ebadf(kernel: Kernel, opcode: int, body: bytes) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        kernel.ask(opcode, body)


def test_bytes_go_straight_between_request_answer_and_file(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    assert filesystem.fd is not None
    kernel.ask(p.OPEN, struct.pack("<II", os.O_RDWR, 0))
    reply = kernel.ask(p.WRITE, p.WRITE_IN.pack(1, 3, 5, 0, 0, 0, 0) + b"12345")
    assert p.WRITE_OUT.unpack(reply) == (5, 0)
    assert os.pread(filesystem.fd, 100, 0) == b"\0\0\x0012345"
    assert kernel.ask(p.READ, p.READ_IN.pack(1, 4, 3)) == b"234"
    assert kernel.ask(p.READ, p.READ_IN.pack(1, 4, 1 << 20)) == b"2345"
    assert kernel.ask(p.READ, p.READ_IN.pack(1, 8, 4096)) == b""


def test_whoever_writes_may_not_keep_the_set_ids(filesystem: FakeFilesystem, kernel: Kernel) -> None:
    assert filesystem.fd is not None

    def mode() -> int:
        return stat.S_IMODE(os.fstat(cast(int, filesystem.fd)).st_mode)

    os.fchmod(filesystem.fd, 0o6755)
    kernel.ask(p.OPEN, struct.pack("<II", os.O_RDWR, 0))
    kernel.ask(p.WRITE, p.WRITE_IN.pack(1, 0, 1, 0, 0, 0, 0) + b"x")
    assert mode() == 0o6755
    kernel.ask(p.WRITE, p.WRITE_IN.pack(1, 0, 1, p.WRITE_KILL_SUIDGID, 0, 0, 0) + b"x")
    assert mode() == 0o755
    os.fchmod(filesystem.fd, 0o4755)
    kernel.ask(p.OPEN, struct.pack("<II", os.O_RDWR | os.O_TRUNC, p.OPEN_KILL_SUIDGID))
    assert mode() == 0o755
