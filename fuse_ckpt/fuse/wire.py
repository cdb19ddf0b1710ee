"""Serving a mount: how the kernel's requests reach libfuse, and through it pyfuse3's handlers.

The relay stands between the two, except on old kernels, where libfuse reads the kernel's descriptor itself.
"""

from __future__ import annotations

import os
import re
import select

import pyfuse3
import trio

from fuse_ckpt.errors import MountFailed
from fuse_ckpt.fuse.mount import Attached, detach
from fuse_ckpt.fuse.operations import Operations
from fuse_ckpt.fuse.relay import Relay
from fuse_ckpt.vfs import Filesystem

_RELAYED_SINCE = (6, 5)  # libfuse receives by splice, which a SEQPACKET socket takes from that version on


def can_relay() -> bool:
    """Whether this kernel can have the relay between it and libfuse."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= _RELAYED_SINCE


class Wire:
    """A mount in service. pyfuse3 keeps its session in module globals: one for each process."""

    def __init__(self, filesystem: Filesystem, attached: Attached) -> None:
        self._operations = Operations(filesystem)  # pyfuse3 keeps no reference that counts
        self._device = attached.device
        self.stopped = False
        self._relay: Relay | None = None
        descriptor = attached.device
        if attached.relayed:
            self._relay = Relay(attached.device, filesystem, attached.depth)
            descriptor = self._relay.far.fileno()
        try:
            pyfuse3.init(self._operations, f"/dev/fd/{descriptor}", set())
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

    def is_let_go(self) -> bool:
        """Whether the kernel has let go of the filesystem, whatever of that has been heard yet."""
        asked = select.poll()
        asked.register(self._device, 0)
        return any(events & select.POLLERR for _, events in asked.poll(0))

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
