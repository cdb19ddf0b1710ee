"""The virtual filesystem: the working view and the read view, without a kernel."""

from fuse_ckpt.vfs.assembly import browse_filesystem, job_filesystem
from fuse_ckpt.vfs.attributes import Attributes, Caller, Changes
from fuse_ckpt.vfs.filesystem import Filesystem

__all__ = ["Attributes", "Caller", "Changes", "Filesystem", "browse_filesystem", "job_filesystem"]
