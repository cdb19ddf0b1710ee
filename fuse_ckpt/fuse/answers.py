"""The requests that the relay answers itself: bytes of the kernel's protocol in, bytes out."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from fuse_ckpt.fuse import protocol as p
from fuse_ckpt.vfs import Attributes, Caller, Filesystem

_libc = ctypes.CDLL(None, use_errno=True)
_COPY_MAX = 1 << 30  # bytes a COPY_FILE_RANGE; its answer is 32 bits wide
_SYSTEM_XATTRS = (b"security.", b"system.posix_acl_")  # what is asked for most, and hardly ever there

Later = Callable[[], Awaitable[bytes]]


@dataclass(slots=True)
class Request:
    """A request's header, and what follows it: valid only until the next request is read."""

    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    body: memoryview

    @property
    def caller(self) -> Caller:
        return Caller(self.uid, self.gid, self.pid)

    def name(self, offset: int = 0) -> bytes:
        return bytes(self.body[offset:]).split(b"\0", 1)[0]


class Answers:
    """`table`: opcode → what answers it, at once (bytes), later (a coroutine function), or not at all (None).

    `notify` tells the kernel something that it did not ask; it may not wait.
    """

    def __init__(self, filesystem: Filesystem, notify: Callable[[bytes], None]) -> None:
        self._fs = filesystem
        self._notify = notify
        self._page = bytearray(p.OUT_HEADER.size + p.LARGEST_REQUEST)  # the answer to READ, until the next one
        self.table: dict[int, Callable[[Request], bytes | memoryview | Later | None]] = {
            p.LOOKUP: self.lookup,
            p.FORGET: self.forget,
            p.BATCH_FORGET: self.batch_forget,
            p.GETATTR: self.getattr,
            p.GETXATTR: self.getxattr,
            p.ACCESS: self.access,
            p.OPEN: self.open,
            p.READ: self.read,
            p.WRITE: self.write,
            p.CREATE: self.create,
            p.FLUSH: self.flush,
            p.RELEASE: self.release,
            p.FALLOCATE: self.fallocate,
            p.IOCTL: self.ioctl,
            p.LSEEK: self.lseek,
            p.COPY_FILE_RANGE: self.copy_file_range,
        }

    def lookup(self, request: Request) -> bytes:
        return p.answer(request.unique, _entry(self._fs.lookup(request.nodeid, request.name())))

    def forget(self, request: Request) -> None:
        (count,) = p.FORGET_IN.unpack_from(request.body)
        self._fs.forget(request.nodeid, count)

    def batch_forget(self, request: Request) -> None:
        count, _ = p.BATCH_FORGET_IN.unpack_from(request.body)
        for number in range(count):
            offset = p.BATCH_FORGET_IN.size + number * p.FORGET_ONE.size
            self._fs.forget(*p.FORGET_ONE.unpack_from(request.body, offset))

    def getattr(self, request: Request) -> bytes:
        found = self._fs.getattr(request.nodeid)
        valid, valid_ns = _timeout(found.attr_timeout)
        return p.answer(request.unique, p.ATTR_OUT.pack(valid, valid_ns, 0) + _attr(found))

    def getxattr(self, request: Request) -> bytes:
        """The kernel asks for security.capability before the first write of every file, `ls -l` for two of each."""
        size, _ = p.GETXATTR_IN.unpack_from(request.body)
        name = request.name(p.GETXATTR_IN.size)
        if name.startswith(_SYSTEM_XATTRS) and self._fs.has_no_xattrs(request.nodeid):
            return p.refusal(request.unique, errno.ENODATA)
        value = self._fs.getxattr(request.nodeid, name)
        if size == 0:
            return p.answer(request.unique, p.GETXATTR_OUT.pack(len(value), 0))
        return p.answer(request.unique, value) if len(value) <= size else p.refusal(request.unique, errno.ERANGE)

    def access(self, request: Request) -> bytes:
        """access(2), where the kernel does not check permissions itself: whoever may enter may do all but execute."""
        (mask,) = p.ACCESS_IN.unpack_from(request.body)
        mode = self._fs.getattr(request.nodeid).mode
        refused = mask & os.X_OK and stat.S_ISREG(mode) and not mode & 0o111
        return p.refusal(request.unique, errno.EACCES) if refused else p.answer(request.unique)

    def open(self, request: Request) -> bytes | Later:
        flags, open_flags = p.OPEN_IN.unpack_from(request.body)
        unique, nodeid, caller = request.unique, request.nodeid, request.caller
        fh = self._fs.open_now(nodeid, flags, caller)
        if fh is not None:
            if open_flags & p.OPEN_KILL_SUIDGID:
                self._fs.drop_set_ids(fh)
            return p.answer(unique, self._opened(fh, flags))

        async def open_sealed() -> bytes:
            return p.answer(unique, self._opened(await self._fs.open_sealed(nodeid, flags, caller), flags))

        return open_sealed

    def create(self, request: Request) -> bytes:
        flags, mode, _, _ = p.CREATE_IN.unpack_from(request.body)
        name = request.name(p.CREATE_IN.size)
        fh, attributes = self._fs.create(request.nodeid, name, mode & 0o7777, request.caller)
        return p.answer(request.unique, _entry(attributes) + self._opened(fh, flags | os.O_TRUNC))

    def read(self, request: Request) -> memoryview:
        """From the file straight into the answer, which is valid until the next READ."""
        fh, offset, size = p.READ_IN.unpack_from(request.body)
        view = memoryview(self._page)
        count = self._fs.read_into(fh, offset, view[p.OUT_HEADER.size :][:size])
        p.OUT_HEADER.pack_into(self._page, 0, p.OUT_HEADER.size + count, 0, request.unique)
        return view[: p.OUT_HEADER.size + count]

    def write(self, request: Request) -> bytes:
        """From the request straight into the file."""
        fh, offset, size, write_flags, _, _, _ = p.WRITE_IN.unpack_from(request.body)
        written = self._fs.write(fh, offset, request.body[p.WRITE_IN.size :][:size])
        if write_flags & p.WRITE_KILL_SUIDGID:
            self._fs.drop_set_ids(fh)
        return p.answer(request.unique, p.WRITE_OUT.pack(written, 0))

    def flush(self, request: Request) -> bytes | Later:
        unique = request.unique
        (fh,) = p.FLUSH_IN.unpack_from(request.body)
        durable = self._fs.flush(fh, request.pid)
        if durable is None:
            return p.answer(unique)

        async def flush() -> bytes:
            await durable()
            return p.answer(unique)

        return flush

    def release(self, request: Request) -> bytes:
        (fh,) = p.RELEASE_IN.unpack_from(request.body)
        self._fs.release(fh)
        return p.answer(request.unique)

    def lseek(self, request: Request) -> bytes:
        """SEEK_HOLE and SEEK_DATA: the kernel knows the others itself."""
        fh, offset, whence, _ = p.LSEEK_IN.unpack_from(request.body)
        return p.answer(request.unique, p.LSEEK_OUT.pack(self._fs.handles[fh].seek(offset, whence)))

    def ioctl(self, request: Request) -> bytes:
        """Python asks every file that it opens whether it is a terminal."""
        return p.refusal(request.unique, errno.ENOTTY)

    def fallocate(self, request: Request) -> Later:
        unique = request.unique
        fh, offset, length, mode, _ = p.FALLOCATE_IN.unpack_from(request.body)
        fd = self._fs.handles.descriptor(fh)

        async def fallocate() -> bytes:
            await trio.to_thread.run_sync(_fallocate, fd, mode, offset, length)
            return p.answer(unique)

        return fallocate

    def copy_file_range(self, request: Request) -> Later:
        """Between two files of the mount: the disk shares the extents where it can."""
        unique = request.unique
        fh, offset, _, fh_out, offset_out, length, _ = p.COPY_IN.unpack_from(request.body)
        source, target = self._fs.handles.descriptor(fh), self._fs.handles.descriptor(fh_out)
        count = min(length, _COPY_MAX)

        async def copy() -> bytes:
            copied = await trio.to_thread.run_sync(os.copy_file_range, source, target, count, offset, offset_out)
            return p.answer(unique, p.WRITE_OUT.pack(copied, 0))

        return copy

    def _opened(self, fh: int, flags: int) -> bytes:
        """How the kernel is to treat an open file. Only the close of a writer is worth a FLUSH.

        With passthrough it answers EIO to FOPEN_KEEP_CACHE. Without, a file that is only written passes its caches by:
        they would hold each page a second time. It cannot be mapped, which that would forbid.
        """
        handle = self._fs.handles[fh]
        backing_id = handle.inode.backing_id
        how = flags & os.O_ACCMODE
        if backing_id and how == os.O_RDWR and not flags & os.O_TRUNC:
            self._notify(p.forget_attributes(handle.inode.nid))  # a mapping may change them, and the kernel not notice
        answer = p.FOPEN_DIRECT_IO if how == os.O_WRONLY else p.FOPEN_KEEP_CACHE
        answer = p.FOPEN_PASSTHROUGH if backing_id else answer
        return p.OPEN_OUT.pack(fh, answer if handle.writable else answer | p.FOPEN_NOFLUSH, backing_id)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _timeout(seconds: float) -> tuple[int, int]:
    return int(seconds), int(seconds % 1 * 1e9)


def _entry(found: Attributes) -> bytes:
    entry, entry_ns = _timeout(found.entry_timeout)
    valid, valid_ns = _timeout(found.attr_timeout)
    return p.ENTRY_OUT.pack(found.nid, 0, entry, valid, entry_ns, valid_ns) + _attr(found)


def _attr(found: Attributes) -> bytes:
    atime, atime_ns = divmod(found.atime_ns, 10**9)
    mtime, mtime_ns = divmod(found.mtime_ns, 10**9)
    ctime, ctime_ns = divmod(found.ctime_ns, 10**9)
    mask = 0xFFFFFFFFFFFFFFFF  # times before 1970 are negative there, in two's complement
    return p.ATTR.pack(
        found.nid, found.size, found.blocks, atime & mask, mtime & mask, ctime & mask, atime_ns, mtime_ns, ctime_ns,
        found.mode, found.nlink, found.uid, found.gid, _device(found.rdev), found.blksize, 0,
    )  # fmt: skip


def _device(rdev: int) -> int:
    """A device number as the kernel packs it into 32 bits (new_encode_dev)."""
    major, minor = os.major(rdev), os.minor(rdev)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
