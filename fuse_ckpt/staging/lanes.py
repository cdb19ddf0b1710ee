"""Which sealed draft is committed next, while others are: pure."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from fuse_ckpt.staging.journal import Sealed

LANES = 4  # drafts that are committed at once
BIG = 1 << 30  # bytes; seconds of reading
BIG_LANES = 2  # the others are left to what takes no time


def next_draft(queue: Sequence[Sealed], under_way: Container[Path]) -> Sealed | None:
    """The first of `queue` (the oldest first) that may begin now beside those of it that are `under_way` (directories).

    Never two of one unit: the later one is the later version.
    """
    busy = [sealed for sealed in queue if sealed.directory in under_way]
    if len(busy) >= LANES:
        return None
    big = sum(map(is_big, busy))
    units = {sealed.journal.unit for sealed in busy}
    for sealed in queue:
        if sealed.journal.unit not in units and not (is_big(sealed) and big >= BIG_LANES):
            return sealed
        units.add(sealed.journal.unit)
    return None


def is_big(sealed: Sealed) -> bool:
    return sum(linked.size for linked in sealed.journal.files) >= BIG
