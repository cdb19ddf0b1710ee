"""Which process writes, and when it has gone. Pids are those of this process's own pid namespace."""

from __future__ import annotations

import os

import trio

_RETRY = 1.0  # seconds
_PF_EXITING = 0x4  # linux/sched.h
_REMEMBERED = 1024  # tasks
_STAT_MAX = 4096  # bytes; 52 numbers and a name of at most 64 characters
_processes: dict[int, int] = {}  # task → process, asked again each time whether it is still so
UNSEEN = 0  # a process of another pid namespace, or one that has gone already


def process_of(task: int) -> int:
    """The process (thread group) that a task id belongs to; UNSEEN where /proc does not show it.

    The kernel tells a filesystem the id of the thread that makes the call, not of its process.
    """
    if task <= 0:
        return UNSEEN
    known = _processes.get(task)
    if known is not None and os.path.exists(f"/proc/{known}/task/{task}"):
        return known
    known = _read_process(task)
    if len(_processes) >= _REMEMBERED:
        _processes.clear()
    _processes[task] = known
    return known


def _read_process(task: int) -> int:
    try:
        with open(f"/proc/{task}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return UNSEEN
    return UNSEEN


def death_of(process: int) -> str | None:
    """How `process` is dying, if it is and not by its own will; None for one that lives, or ends with status 0.

    Asked while a file is closed: the kernel closes what a process leaves open, which looks like any other close, but
    the process waits for the answer with PF_EXITING set and its exit code in place (proc_pid_stat(5), fields 9 and 52).
    """
    return state_of(process)[1]


def state_of(process: int) -> tuple[bool, str | None]:
    """Whether `process` is there and not exiting, and how it is dying if it is; an UNSEEN one counts as alive."""
    flags, code = _state_of(process)
    if not flags & _PF_EXITING:
        return True, None
    number = code & 0x7F
    if number:
        return False, f"its writer was killed by signal {number}"
    return False, f"its writer exited with status {code >> 8}" if code else None


def is_task_of(task: int, process: int) -> bool:
    """Whether the thread `task` belongs to `process`; yes where one of them cannot be seen."""
    return UNSEEN in (task, process) or task == process or os.path.exists(f"/proc/{process}/task/{task}")


def _state_of(process: int) -> tuple[int, int]:
    """The flags and the exit code of a process; one that has gone is exiting with 0."""
    if process == UNSEEN:
        return 0, 0
    try:
        fd = os.open(f"/proc/{process}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, _STAT_MAX).rpartition(b")")[2].split()
        finally:
            os.close(fd)
        return int(fields[6]), int(fields[49])
    except (OSError, ValueError, IndexError):
        return _PF_EXITING, 0


async def wait_exit(process: int) -> str | None:
    """Return when `process` has exited, at once if there is none: how it died, if that can still be seen."""
    while True:
        try:
            fd = os.pidfd_open(process)
            break
        except ProcessLookupError:
            return None
        except OSError:  # no descriptor to be had just now
            await trio.sleep(_RETRY)
    try:
        await trio.lowlevel.wait_readable(fd)
        return death_of(process)  # until its parent has waited for it
    finally:
        os.close(fd)
