"""Which process writes, and when it has gone. Pids are those of this process's own pid namespace."""

from __future__ import annotations

import fcntl
import os
import struct

import trio

_RETRY = 1.0  # seconds
_PF_EXITING = 0x4  # linux/sched.h
_PIDFD_GET_INFO = 0xC040FF0B  # linux/pidfd.h, _IOWR(0xFF, 11, struct pidfd_info)
_PIDFD_INFO = struct.Struct("<QQ11Ii")  # its first version: mask, cgroup, eleven ids, exit code
_PIDFD_INFO_EXIT = 0x8
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
    return (False, _death(code)) if flags & _PF_EXITING else (True, None)


def _death(code: int) -> str | None:
    """What an exit code, as wait(2) tells it, says of a death; None for an end with status 0."""
    number = code & 0x7F
    if number:
        return f"its writer was killed by signal {number}"
    return f"its writer exited with status {code >> 8}" if code else None


def is_task_of(task: int, process: int) -> bool:
    """Whether the thread `task` belongs to `process`; yes where one of them cannot be seen."""
    return UNSEEN in (task, process) or task == process or os.path.exists(f"/proc/{process}/task/{task}")


def _state_of(process: int) -> tuple[int, int]:
    """The flags and the exit code of a process; one that has gone is exiting with 0."""
    return (0, 0) if process == UNSEEN else _stat_of(process) or (_PF_EXITING, 0)


def _stat_of(process: int) -> tuple[int, int] | None:
    try:
        fd = os.open(f"/proc/{process}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, _STAT_MAX).rpartition(b")")[2].split()
        finally:
            os.close(fd)
        return int(fields[6]), int(fields[49])
    except (OSError, ValueError, IndexError):
        return None


def open_process(process: int) -> int | None:
    """A descriptor of `process` for `wait_exit`; None where there is none to be had. Asked while it waits for us: a
    moment later it may have died, and nobody could tell how."""
    try:
        return os.pidfd_open(process)
    except OSError:
        return None


async def wait_exit(process: int, pidfd: int | None = None) -> str | None:
    """Return when `process` has exited, at once if there is none: how it died, if that can still be seen.

    `pidfd`: what `open_process` returned; closed by this.
    """
    while pidfd is None:
        try:
            pidfd = os.pidfd_open(process)
        except ProcessLookupError:
            return None
        except OSError:  # no descriptor to be had just now
            await trio.sleep(_RETRY)
    try:
        await trio.lowlevel.wait_readable(pidfd)
        return _death(_exit_code(process, pidfd))
    finally:
        os.close(pidfd)


def _exit_code(process: int, pidfd: int) -> int:
    """Of a process that has exited: from /proc until its parent has waited for it, then from the kernel's record."""
    found = _stat_of(process)
    if found is not None and found[0] & _PF_EXITING:
        return found[1]
    asked = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *bytes(13)))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, asked)
    except OSError:  # Linux before 6.13; before 6.15 it does not say
        return 0
    mask, *_, code = _PIDFD_INFO.unpack(asked)
    return int(code) if mask & _PIDFD_INFO_EXIT else 0
