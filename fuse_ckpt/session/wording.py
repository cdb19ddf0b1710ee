"""How the copy of a checkpoint is, in words. Pure."""

from __future__ import annotations

from fuse_ckpt.model import Replica, Stage

SHOWN = 5  # missing ranks that are named


def words_of(replica: Replica | None, *, here: bool = True) -> str:
    """ "local", "waiting", "uploading 62 %", "partial 3/4 (missing rank 2)", "replicated", "aborted", "given up".

    `here`: its bytes are in this store, too.
    """
    if replica is None:
        return "local"
    if replica.stage is Stage.UPLOADING:
        return f"uploading {percent(replica)} %"
    if replica.stage is Stage.PARTIAL:
        missing = [rank for rank in range(replica.nodes) if rank not in replica.parts]
        named = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
        lacking = f" (missing rank{'s' if len(missing) > 1 else ''} {named})" if missing else ""
        return f"partial {replica.nodes - len(missing)}/{replica.nodes}{lacking}"
    if replica.stage is Stage.REPLICATED and not here:
        return "replicated, not here"
    return str(replica.stage)


def percent(replica: Replica) -> int:
    """How much of it is there; never 100 before it is."""
    return min(99, 100 * replica.sent // replica.size) if replica.size else 0
