"""How each error looks to a program on the mount. The only place that decides it."""

from __future__ import annotations

import errno

from fuse_ckpt import errors

_NUMBERS: dict[type[errors.FuseCkptError], int] = {
    errors.FuseCkptError: errno.EIO,
    errors.UsageError: errno.EINVAL,
    errors.NotFound: errno.ENOENT,
    errors.Corrupt: errno.EIO,
    errors.Busy: errno.EBUSY,
    errors.StoreUnusable: errno.EIO,
    errors.CommitFailed: errno.EIO,
    errors.MountFailed: errno.EIO,
    errors.NotReached: errno.EIO,
    errors.NotStarted: errno.EIO,
}


def number_of(error: BaseException) -> int:
    """The errno of any error. A bug is EIO, and so is an OSError that nobody gave a number."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    for kind in type(error).__mro__:
        number = _NUMBERS.get(kind)
        if number is not None:
            return number
    return errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO


def is_expected(error: BaseException) -> bool:
    """Whether the error says something of the request or the disk, rather than of a bug of ours."""
    return (isinstance(error, OSError) and error.errno is not None) or isinstance(error, errors.FuseCkptError)
