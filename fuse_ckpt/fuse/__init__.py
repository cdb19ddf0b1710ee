"""FUSE: mounting, and translating the kernel's requests into calls on a Filesystem.

Two doors: `mount` needs no pyfuse3; `wire` does, and is imported only by whoever serves a mount.
"""
