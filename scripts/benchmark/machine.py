"""What the figures were measured on, and the kernel's own counters."""

from __future__ import annotations

import os
import platform
import re
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

CPU_CLOCK = 2  # CPUCLOCK_SCHED, of include/linux/posix-timers.h: all threads of a process, those that ended too
BLOCK = 4 << 20  # bytes
SECTOR = 512  # bytes; what the kernel counts in, whatever the disk's own are


def describe(directory: Path) -> dict[str, str | int]:
    """The machine, the disk below `directory` and the versions, by name."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _first(Path("/proc/cpuinfo"), r"^model name\s*: (.*)$") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "filesystem": filesystem(directory),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "safetensors", "pyfuse3")},
    }


def filesystem(directory: Path) -> str:
    """The type of the filesystem that `directory` lies on."""
    device = os.stat(directory).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields, _, tail = line.partition(" - ")
            if fields.split(" ")[2] == number:
                return tail.split(" ")[0]
    return "unknown"


@dataclass(frozen=True)
class Usage:
    """What a process has used so far: seconds of CPU, bytes read by calls, bytes it has given the disk to write."""

    cpu: float
    read: int
    written: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Of a process of this user (or as root)."""
        counters = Path(f"/proc/{pid}/io").read_text()
        return cls(
            cpu=time.clock_gettime(~pid << 3 | CPU_CLOCK),
            read=_counter(counters, "rchar"),
            written=_counter(counters, "write_bytes") - _counter(counters, "cancelled_write_bytes"),
        )

    def since(self, before: Usage) -> Usage:
        return Usage(self.cpu - before.cpu, self.read - before.read, self.written - before.written)


def disk_written(directory: Path) -> int | None:
    """Bytes that the disk below `directory` was given to write, by everybody; None where it is not a disk."""
    device = os.stat(directory).st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except FileNotFoundError:
        return None
    return int(fields[6]) * SECTOR


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    return int(_first(Path(f"/proc/{pid}/status"), r"^VmRSS:\s*(\d+) kB$") or 0) * 1024


def warm_memory(size: int, directory: Path) -> None:
    """Have `size` bytes of memory ready that the next file takes: a virtual machine may have given its free memory back
    to the host, and the first touch of such a page takes longer than copying it (measured: 13 µs against 0.8 for
    4 KiB). By a file in `directory` that is written and removed: the pages of one are the next one's, which those of an
    anonymous mapping are not (saves of 1 GiB took 0.42 s or 1.5, by what had gone before)."""
    with tempfile.TemporaryFile(dir=directory, buffering=0) as scratch:
        block = bytes(BLOCK)
        for _ in range(0, size, BLOCK):
            scratch.write(block)


def _first(path: Path, pattern: str) -> str | None:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    return found[1] if found else None


def _counter(text: str, name: str) -> int:
    return int(re.findall(rf"^{name}: (\d+)$", text, re.MULTILINE)[0])
