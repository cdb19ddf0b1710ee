"""The kernel's FUSE protocol, as far as the relay speaks it: linux/fuse.h, protocol 7.38 and later, little endian.

Layouts are those of the kernel's header; sizes are in bytes.
"""

from __future__ import annotations

import struct

IN_HEADER = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = struct.Struct("<IiQ")  # len error unique
INIT_IN = struct.Struct("<IIIII")  # major minor max_readahead flags flags2 (11 unused words follow)
INIT_OUT_SIZE = 64
BACKGROUND = 1024  # requests at a time that no program waits for; the kernel's own limit is 12
OPEN_IN = struct.Struct("<II")  # flags open_flags
OPEN_OUT = struct.Struct("<QIi")  # fh open_flags backing_id
CREATE_IN = struct.Struct("<IIII")  # flags mode umask open_flags; the name follows
RELEASE_IN = struct.Struct("<Q")  # fh; flags and lock owner follow
FLUSH_IN = struct.Struct("<Q")
FORGET_IN = struct.Struct("<Q")  # nlookup
BATCH_FORGET_IN = struct.Struct("<II")  # count dummy; then (nodeid, nlookup) of each
FORGET_ONE = struct.Struct("<QQ")
FALLOCATE_IN = struct.Struct("<QQQII")  # fh offset length mode padding
LSEEK_IN = struct.Struct("<QQII")  # fh offset whence padding
LSEEK_OUT = struct.Struct("<Q")
COPY_IN = struct.Struct("<QQQQQQQ")  # fh_in off_in nodeid_out fh_out off_out len flags
GETXATTR_IN = struct.Struct("<II")  # size padding; the name follows
GETXATTR_OUT = struct.Struct("<II")  # size padding: the answer where size 0 was asked for
ACCESS_IN = struct.Struct("<I")  # mask; padding follows
READ_IN = struct.Struct("<QQI")  # fh offset size; flags and lock owner follow
WRITE_IN = struct.Struct("<QQIIQII")  # fh offset size write_flags lock_owner flags padding; the data follow
WRITE_OUT = struct.Struct("<II")  # size padding
ENTRY_OUT = struct.Struct("<QQQQII")  # nodeid generation entry_valid attr_valid and both in nanoseconds; attr follows
ATTR_OUT = struct.Struct("<QII")  # attr_valid attr_valid_nsec dummy; attr follows
ATTR = struct.Struct(
    "<QQQQQQIIIIIIIIII"
)  # ino size blocks a/m/ctime, their nsec, mode nlink uid gid rdev blksize flags
INVAL_INODE_OUT = struct.Struct("<Qqq")  # ino offset length
BACKING_MAP = struct.Struct("<iIQ")  # fd flags padding

LOOKUP, FORGET, GETATTR = 1, 2, 3
OPEN, READ, WRITE, RELEASE, GETXATTR, FLUSH, INIT, ACCESS, CREATE, INTERRUPT = 14, 15, 16, 18, 22, 25, 26, 34, 35, 36
IOCTL, BATCH_FORGET, FALLOCATE, LSEEK, COPY_FILE_RANGE = 39, 42, 43, 46, 47
NOTIFY_INVAL_INODE = 2

FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FOPEN_PASSTHROUGH = 1 << 0, 1 << 1, 1 << 5, 1 << 7

OPEN_KILL_SUIDGID, WRITE_KILL_SUIDGID = 1 << 0, 1 << 2  # of open_flags, of write_flags

# bits of INIT's flags, and of flags2
INIT_EXT, HANDLE_KILLPRIV_V2, WRITEBACK_CACHE = 1 << 30, 1 << 28, 1 << 16
PASSTHROUGH = 1 << (37 - 32)

BACKING_OPEN = (1 << 30) | (BACKING_MAP.size << 16) | (229 << 8) | 1  # _IOW(229, 1, struct fuse_backing_map)
BACKING_CLOSE = (1 << 30) | (4 << 16) | (229 << 8) | 2  # _IOW(229, 2, uint32_t)

LARGEST_REQUEST = (1 << 20) + (1 << 16)  # a write of 1 MiB and its headers


def answer(unique: int, body: bytes = b"") -> bytes:
    """A reply that carries `body`."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def refusal(unique: int, number: int) -> bytes:
    """A reply that says error `number` (positive)."""
    return OUT_HEADER.pack(OUT_HEADER.size, -number, unique)


def forget_attributes(nodeid: int) -> bytes:
    """A notification: what the kernel remembers of an inode's attributes is no longer so. It takes no lock for this."""
    size = OUT_HEADER.size + INVAL_INODE_OUT.size
    return OUT_HEADER.pack(size, NOTIFY_INVAL_INODE, 0) + INVAL_INODE_OUT.pack(nodeid, -1, 0)


def edit_init(reply: bytearray, depth: int, offered: int = 0) -> None:
    """Edit libfuse's reply to INIT. `offered`: the flags of the request.

    `depth` > 0: passthrough is wanted, with backing files less than so many filesystems deep; the writeback cache goes,
    for the kernel refuses the two together. With HANDLE_KILLPRIV_V2 the kernel may remember that a file has no
    capabilities; else it asks us for them, by GETXATTR, before every write(2) (measured: 110 µs, not 7, for 4 KiB).

    A RELEASE is one of the requests that no program waits for. Of those the kernel holds back all but 12, so that the
    unlink that follows a close could overtake it, and find its file still open: so many are not held back.
    """
    missing = OUT_HEADER.size + INIT_OUT_SIZE - len(reply)
    if missing > 0:
        reply.extend(bytes(missing))
        struct.pack_into("<I", reply, 0, len(reply))
    (flags,) = struct.unpack_from("<I", reply, 16 + 12)
    flags |= offered & HANDLE_KILLPRIV_V2
    if depth:
        flags = (flags | INIT_EXT) & ~WRITEBACK_CACHE
        (flags2,) = struct.unpack_from("<I", reply, 16 + 32)
        struct.pack_into("<II", reply, 16 + 32, flags2 | PASSTHROUGH, depth)
    struct.pack_into("<IHH", reply, 16 + 12, flags, BACKGROUND, BACKGROUND * 3 // 4)
