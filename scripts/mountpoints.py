"""What is mounted at a place, and whether it answers: for whoever starts a daemon and waits for its mount."""

from __future__ import annotations

import os
from pathlib import Path

# Below `unshare --mount`, what runs a command without the mounts that others have made: the namespace's copies would
# outlive their unmounting, and their daemons serve on until the command ends.
WITHOUT_MOUNTS = ("sh", "-c", 'umount --all --lazy --no-canonicalize --types fuse.fuse_ckpt; exec "$@"', "sh")
APART = ("unshare", "--mount", "--propagation", "private", *WITHOUT_MOUNTS)  # needs root


def is_mounted(path: Path) -> bool:
    """Whether something is mounted at exactly this place, however stale."""
    with open("/proc/self/mountinfo") as lines:
        return any(line.split(" ")[4] == str(path) for line in lines)


def answers(path: Path) -> bool:
    """Whether what is mounted at this place is served.

    All is asked of one descriptor: a dead mount may be taken away between two looks at the path, and the directory
    below it answers too.
    """
    try:
        top = os.open(path, os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        served = os.fstatvfs(top).f_blocks > 0  # fstat(2) may be the kernel's memory
        return served and os.fstat(top).st_dev != os.stat(path.parent).st_dev
    except OSError:
        return False
    finally:
        os.close(top)
