"""Serving a mount: how the kernel's requests reach libfuse, and through it pyfuse3's handlers.

Without passthrough libfuse reads the kernel's descriptor itself. With it the relay stands between the two.
"""

from __future__ import annotations

import pyfuse3
import trio

from fuse_ckpt.errors import MountFailed
from fuse_ckpt.fuse.mount import Attached, detach
from fuse_ckpt.fuse.operations import Operations
from fuse_ckpt.fuse.relay import Relay
from fuse_ckpt.vfs import Filesystem


class Wire:
    """A mount in service. pyfuse3 keeps its session in module globals: one for each process."""

    def __init__(self, filesystem: Filesystem, attached: Attached) -> None:
        self._operations = Operations(filesystem)  # pyfuse3 keeps no reference that counts
        self.stopped = False
        self._relay: Relay | None = None
        place = str(attached.mountpoint)
        if attached.device is not None and attached.depth:
            self._relay = Relay(attached.device, filesystem, attached.depth)
            place = f"/dev/fd/{self._relay.far.fileno()}"
        elif attached.device is not None:
            place = f"/dev/fd/{attached.device}"
        try:
            pyfuse3.init(self._operations, place, set(attached.libfuse_options))
        except RuntimeError as exc:
            detach(attached.mountpoint, lazy=True)
            raise MountFailed(f"{attached.mountpoint} cannot be mounted: {exc}.") from None

    async def serve(self) -> None:
        """Answer the kernel until the last mount of this filesystem has gone, or until `stop`."""
        async with trio.open_nursery() as nursery:
            if self._relay is not None:
                nursery.start_soon(self._relay.run, pyfuse3.terminate)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """End `serve` although something is still mounted: what is open there says ENOTCONN from then on."""
        self.stopped = True
        pyfuse3.terminate()

    def close(self) -> None:
        """Give the kernel's descriptor back. The mount point is left as it is."""
        pyfuse3.close(unmount=False)
        if self._relay is not None:
            self._relay.close()


def forget_name(parent: int, name: bytes) -> None:
    """Make the kernel look `name` in the directory `parent` up again; returns before it has."""
    pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
