"""FUSE: mounting, and translating the kernel's requests into calls on a Filesystem.

`mount` needs no pyfuse3; `wire` and `operations` do, and are imported only by whoever serves a mount.
"""

from fuse_ckpt.fuse import mount

__all__ = ["mount"]
