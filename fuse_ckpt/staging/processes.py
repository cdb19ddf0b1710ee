"""Which process writes, and when it has gone. Pids are those of this process's own pid namespace."""

from __future__ import annotations

import os

import trio

UNSEEN = 0  # a process of another pid namespace, or one that has gone already


def process_of(task: int) -> int:
    """The process (thread group) that a task id belongs to; UNSEEN where /proc does not show it.

    The kernel tells a filesystem the id of the thread that makes the call, not of its process.
    """
    if task <= 0:
        return UNSEEN
    try:
        with open(f"/proc/{task}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return UNSEEN
    return UNSEEN


async def wait_exit(process: int) -> None:
    """Return when `process` has exited, at once if there is none."""
    try:
        fd = os.pidfd_open(process)
    except OSError:
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
