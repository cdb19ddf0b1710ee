"""Checkpoints that several machines keep together in one object store: what lies there, and who decides.

Nothing here is a server, a lock, a leader or a clock. The one primitive is a PUT of a small object that succeeds only
where there is none yet; every object but the data is made so, and never changed.
"""

from __future__ import annotations

from .deciding import Missing, decide, state_of, union_of
from .keys import check_group, data_key, group_of
from .partial import half_made
from .shared import SharedStore
from .values import (
    Decision,
    Format,
    GroupState,
    Part,
    PartFile,
    PartRef,
    Registered,
    Standing,
    Tombstone,
    Union,
    Verdict,
)

__all__ = [
    "Decision",
    "Format",
    "GroupState",
    "Missing",
    "Part",
    "PartFile",
    "PartRef",
    "Registered",
    "SharedStore",
    "Standing",
    "Tombstone",
    "Union",
    "Verdict",
    "check_group",
    "data_key",
    "decide",
    "group_of",
    "half_made",
    "state_of",
    "union_of",
]
