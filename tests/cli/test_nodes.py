"""Which node of how many: what is said, and what launchers say."""

from __future__ import annotations

import pytest

from fuse_ckpt.cli.nodes import AUTO, placed
from fuse_ckpt.errors import UsageError

TORCHRUN = {
    "RANK": "13", "WORLD_SIZE": "16", "GROUP_RANK": "3", "GROUP_WORLD_SIZE": "4", "TORCHELASTIC_RUN_ID": "run",
    "TORCHELASTIC_RESTART_COUNT": "2",
}  # fmt: skip
SLURM = {"SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
KUBERNETES = {"JOB_COMPLETION_INDEX": "5"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        (TORCHRUN, (3, 4, "run.2")),
        (SLURM, (1, 2, "77.0")),
        ({**SLURM, "SLURM_RESTART_COUNT": "1"}, (1, 2, "77.1.0")),
        ({**SLURM, **TORCHRUN}, (3, 4, "run.2")),
        ({"PET_NODE_RANK": "0", "PET_NNODES": "2", "PET_RDZV_ID": "x"}, (0, 2, "x")),
    ],
)
def test_launchers_say_it(environment: dict[str, str], found: tuple[int, int, str]) -> None:
    assert placed(environment, None, AUTO, None) == found


def test_what_is_said_counts_more_than_what_launchers_say() -> None:
    assert placed(TORCHRUN, 0, 2, "a") == (0, 2, "a")
    assert placed(KUBERNETES, None, 8, "a") == (5, 8, "a")


@pytest.mark.parametrize("environment", [{}, TORCHRUN, SLURM, KUBERNETES])
def test_unless_nodes_are_asked_for_each_writes_for_itself(environment: dict[str, str]) -> None:
    assert placed(environment, None, None, None) == (0, 1, "")
    assert placed(environment, None, 1, None) == (0, 1, "")


def test_the_script_of_a_slurm_job_is_no_step_of_it() -> None:
    with pytest.raises(UsageError, match="give --nodes N"):
        placed({"SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_ID": "77"}, None, AUTO, None)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ((0, None, None), "give --nodes N, too"),
        ((None, 4, "a"), "give --rank 0 … 3"),
        ((4, 4, "a"), "none of 4 nodes"),
        ((0, 4, None), "Give --attempt"),
        ((None, AUTO, None), "give --nodes N"),
    ],
)
def test_what_nobody_says_is_asked_for(chosen: tuple[int | None, int | None, str | None], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        placed({}, *chosen)
