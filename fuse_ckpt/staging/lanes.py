"""Which sealed draft is committed next, while others are: pure.

Small ones are committed one after another, so that they are listed in the order in which they were saved. Big ones take
so long to read that nothing else is to wait for them, nor they for each other.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from fuse_ckpt.staging.journal import Sealed

BIG = 64 << 20  # bytes
BIG_LANES = 3
LANES = 1 + BIG_LANES  # drafts that are committed at once


def next_draft(queue: Sequence[Sealed], under_way: Container[Path]) -> Sealed | None:
    """The first of `queue` (the oldest first) that may begin now beside those of it that are `under_way` (directories).

    Never two of one unit: the later one is the later version.
    """
    busy = [sealed for sealed in queue if sealed.directory in under_way]
    units = {sealed.journal.unit for sealed in busy}
    free = {True: BIG_LANES, False: 1}
    for sealed in busy:
        free[is_big(sealed)] -= 1
    for sealed in queue:
        if sealed.journal.unit not in units and free[is_big(sealed)] > 0:
            return sealed
        units.add(sealed.journal.unit)
    return None


def is_big(sealed: Sealed) -> bool:
    return sum(linked.size for linked in sealed.journal.files) >= BIG
