"""How one value is written for a person. Whatever a program put into a name, nothing raw reaches a terminal."""

from __future__ import annotations

import errno
import math
import os

from fuse_ckpt.wording import loss, size, timestamp, visible

__all__ = ["cell", "duration", "finite", "loss", "size", "system_error", "timestamp", "visible"]

_TIMES = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def duration(ns: int) -> str:
    """Nanoseconds as `6 d 23 h`, `2 h 5 min`, `40 s`: its two largest units; `none left` for 0 and less."""
    if ns <= 0:
        return "none left"
    rest = max(1, ns // 10**9)
    parts: list[str] = []
    for unit, seconds in _TIMES:
        count, rest = divmod(rest, seconds)
        if count or parts:
            parts.append(f"{count} {unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def finite(value: float | None) -> float | None:
    """None for what JSON cannot carry."""
    return value if value is not None and math.isfinite(value) else None


def cell(value: object) -> str:
    """A value as a table's cell: nothing for None, `true` and `false`, visible text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return visible(", ".join(str(item) for item in value))
    return visible(str(value))


def system_error(error: OSError) -> str:
    """What the system said, and of which file."""
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    hint = " (look into the kernel's log for why, then mount -o remount,rw)" if error.errno == errno.EROFS else ""
    return f"{where}{error.strerror or error}{hint}"
