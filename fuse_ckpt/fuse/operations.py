"""pyfuse3's handlers: translate, call the filesystem, translate back. Nothing is decided here."""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.fuse.errno import is_expected, number_of
from fuse_ckpt.vfs import Attributes, Caller, Changes, Filesystem

_log = logging.getLogger(__name__)
_Handler = TypeVar("_Handler", bound=Callable[..., Awaitable[Any]])


def guarded(handler: _Handler) -> _Handler:
    """Turn whatever a handler raises into one errno: pyfuse3 ends the mount on anything but FUSEError.

    Costs 190 ns a call where nothing is raised.
    """

    @functools.wraps(handler)
    async def wrapper(*arguments: Any) -> Any:
        try:
            return await handler(*arguments)
        except FUSEError:
            raise
        except Exception as exc:
            if not is_expected(exc):
                _log.error("%s failed, the program sees EIO: %r", handler.__name__, exc, exc_info=exc)
            raise FUSEError(number_of(exc)) from exc

    return wrapper  # type: ignore[return-value]


class Operations(pyfuse3.Operations):
    """The handlers of one mount."""

    supports_dot_lookup = False  # "." and ".." are the kernel's; no NFS export

    def __init__(self, filesystem: Filesystem) -> None:
        super().__init__()
        self._fs = filesystem

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _entry(self._fs.lookup(parent_inode, name))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            for nid, count in inode_list:
                self._fs.forget(nid, count)
        except Exception as exc:  # no request waits for an answer
            _log.error("forget failed: %r", exc, exc_info=exc)

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return _entry(self._fs.getattr(inode))

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return _entry(await self._fs.setattr(inode, changes, fh, _caller(ctx)))

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._fs.readlink(inode)

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(self._fs.mknod(parent_inode, name, mode, rdev, _caller(ctx)))

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(self._fs.mkdir(parent_inode, name, mode & 0o7777, _caller(ctx)))

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.unlink(parent_inode, name, _caller(ctx))

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.rmdir(parent_inode, name, _caller(ctx))

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(self._fs.symlink(parent_inode, name, target, _caller(ctx)))

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, _caller(ctx))

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return _entry(self._fs.link(inode, new_parent_inode, new_name, _caller(ctx)))

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=await self._fs.open(inode, flags, _caller(ctx)))

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        fh, attributes = self._fs.create(parent_inode, name, mode & 0o7777, _caller(ctx))
        return pyfuse3.FileInfo(fh=fh), _entry(attributes)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self._fs.read(fh, off, size)

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return self._fs.write(fh, off, buf)

    @guarded
    async def flush(self, fh: int) -> None:
        durable = self._fs.flush(fh)  # must not say ENOSYS: the kernel would never send it again
        if durable is not None:
            await durable()

    @guarded
    async def release(self, fh: int) -> None:
        self._fs.release(fh)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync(fh, datasync)

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self._fs.opendir(inode)

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        nid, names = self._fs.listing(fh, rewound=start_id == 0)
        for position in range(start_id, len(names)):
            try:
                attributes = self._fs.lookup(nid, names[position])
            except (OSError, FuseCkptError):  # gone since the listing was read
                continue
            if not pyfuse3.readdir_reply(token, names[position], _entry(attributes), position + 1):
                self._fs.forget(attributes.nid, 1)
                return

    @guarded
    async def releasedir(self, fh: int) -> None:
        self._fs.releasedir(fh)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(fh, datasync)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        found = self._fs.statfs()
        answer = pyfuse3.StatvfsData()
        for field in _STATFS:
            setattr(answer, field, getattr(found, field))
        return answer

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.setxattr(inode, name, value)

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return self._fs.getxattr(inode, name)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return self._fs.listxattr(inode)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._fs.removexattr(inode, name)


_STATFS = (
    "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax",
)  # fmt: skip


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)


def _entry(attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.nid
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blksize = attributes.blksize
    entry.st_blocks = attributes.blocks
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    entry.entry_timeout = attributes.entry_timeout
    entry.attr_timeout = attributes.attr_timeout
    return entry
