"""Two files of the same bytes share the disk's blocks, where the filesystem can (XFS, btrfs)."""

from __future__ import annotations

import fcntl
import struct

_FIDEDUPERANGE = 0xC0189436  # linux/fs.h, _IOWR(0x94, 54, struct file_dedupe_range)
_RANGE = struct.Struct("<QQHHL")  # offset and length in the source, one target
_TARGET = struct.Struct("<qQQlL")  # descriptor, offset; what was shared, and how that went
_STEP = 16 << 20  # bytes a call; the kernel takes no more at once


def share_blocks(source: int, target: int, size: int) -> int:
    """Have the first `size` bytes of `target` lie where those of `source` do; returns how many do.

    The kernel compares the bytes itself and shares none that differ. Neither file changes, nor its times. Descriptors
    to read by are enough, where the target is ours. Fewer, or none, where the filesystem cannot.
    """
    done = 0
    while done < size:
        length = min(_STEP, size - done)
        asked = bytearray(_RANGE.pack(done, length, 1, 0, 0) + _TARGET.pack(target, done, 0, 0, 0))
        try:
            fcntl.ioctl(source, _FIDEDUPERANGE, asked)
        except OSError:  # whatever the reason: it is a saving, and no promise hangs on it
            return done
        _, _, shared, status, _ = _TARGET.unpack_from(asked, _RANGE.size)
        if status != 0 or shared == 0:
            return done
        done += shared
    return done
