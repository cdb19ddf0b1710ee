"""Which node of how many this is: from options, else from what launchers say in the environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from fuse_ckpt.errors import UsageError

AUTO = 0  # --nodes auto
NODES_MAX = 100_000
# (rank, number of nodes, what all nodes of one start have in common), the first launcher that says a rank. torchrun's
# RANK and WORLD_SIZE count processes; Slurm's SLURM_NODEID counts within a step, outside of which it is 0 everywhere.
_LAUNCHERS = (
    ("GROUP_RANK", "GROUP_WORLD_SIZE", ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")),
    ("PET_NODE_RANK", "PET_NNODES", ("PET_RDZV_ID",)),
    ("SLURM_NODEID", "SLURM_STEP_NUM_NODES", ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")),
    ("JOB_COMPLETION_INDEX", "", ()),
)


def placed(
    environment: Mapping[str, str], rank: int | None, nodes: int | None, attempt: str | None
) -> tuple[int, int, str]:
    """(rank, nodes, attempt). Without `nodes` it is one: what each node saves is a checkpoint of its own.

    Errors: UsageError (something is needed that nobody says, or it cannot be).
    """
    if nodes is None:
        if rank is not None:
            raise UsageError("--rank says which one of several: give --nodes N, too.")
        return 0, 1, attempt or ""
    said_rank, said_nodes, said_attempt = _said(environment)
    count = nodes if nodes != AUTO else said_nodes
    if count is None:
        raise UsageError("How many nodes there are is said by no launcher: give --nodes N.")
    if count == 1:
        return 0, 1, attempt or ""
    mine = rank if rank is not None else said_rank
    if mine is None:
        raise UsageError(f"Which one of {count} nodes this is, is said by no launcher: give --rank 0 … {count - 1}.")
    if not 0 <= mine < count <= NODES_MAX:
        raise UsageError(f"--rank {mine} is none of {count} nodes: they are 0 … {count - 1}.")
    common = attempt or said_attempt
    if not common:
        raise UsageError("Give --attempt: any word that all nodes of this start have in common, and no other start.")
    return mine, count, common


def _said(environment: Mapping[str, str]) -> tuple[int | None, int | None, str | None]:
    for rank, nodes, common in _LAUNCHERS:
        mine = _number(environment.get(rank))
        if mine is None or (nodes and nodes not in environment):
            continue
        words = [environment[name] for name in common if environment.get(name)]
        return mine, _number(environment.get(nodes)), ".".join(words) or None
    return None, None, None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
