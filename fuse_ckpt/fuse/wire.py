"""Serving a mount: where requests of the kernel reach libfuse.

Today libfuse reads the kernel's descriptor itself. A task that stands between the two, so that the kernel moves the
data by itself (passthrough), belongs here; the rest of the house does not change for it: each inode has one backing
descriptor already, and `Attached.libfuse_mountpoint` is a descriptor.
"""

from __future__ import annotations

import pyfuse3

from fuse_ckpt.errors import MountFailed
from fuse_ckpt.fuse.mount import Attached, detach
from fuse_ckpt.fuse.operations import Operations
from fuse_ckpt.vfs import Filesystem


class Wire:
    """A mount in service. pyfuse3 keeps its session in module globals: one for each process."""

    def __init__(self, filesystem: Filesystem, attached: Attached) -> None:
        self._operations = Operations(filesystem)  # pyfuse3 keeps no reference that counts
        self._attached = attached
        self.stopped = False
        try:
            pyfuse3.init(self._operations, attached.libfuse_mountpoint, set(attached.libfuse_options))
        except RuntimeError as exc:
            detach(attached.mountpoint, lazy=True)
            raise MountFailed(f"{attached.mountpoint} cannot be mounted: {exc}.") from None

    async def serve(self) -> None:
        """Answer the kernel until the last mount of this filesystem has gone, or until `stop`."""
        await pyfuse3.main()

    def stop(self) -> None:
        """End `serve` although something is still mounted: what is open there says ENOTCONN from then on."""
        self.stopped = True
        pyfuse3.terminate()

    def close(self) -> None:
        """Give the kernel's descriptor back. The mount point is left as it is."""
        pyfuse3.close(unmount=False)


def forget_name(parent: int, name: bytes) -> None:
    """Make the kernel look `name` in the directory `parent` up again; returns before it has."""
    pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
