"""Frameworks that save as several ranks: torch.distributed.checkpoint, FSDP2, DeepSpeed, Accelerate."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.frameworks.runs import check_bytes, check_resumed, listed, names, train
from tests.mount.runs import Desk

pytestmark = [pytest.mark.mount, pytest.mark.once, pytest.mark.frameworks, pytest.mark.timeout(900)]

# Gloo adds the ranks' gradients up in one order, and every rank has one thread: the same numbers each time.
EXACT = 0.0


@pytest.mark.parametrize("options", [[], ["--no-wait"], ["--sharded"]], ids=["sync", "async", "fsdp2"])
def test_a_distributed_checkpoint_is_one_and_both_ranks_resume_from_it(desk: Desk, options: list[str]) -> None:
    whole = train(desk, "whole", "with_dcp.py", *options, ranks=2)
    found = listed(desk, "whole")
    assert names(found) == ["step-3", "step-6"]
    check_bytes(found, whole)
    for one, step in zip(found, (3, 6), strict=True):
        assert one.files.keys() == {".metadata", "__0_0.distcp", "__1_0.distcp"}
        said = one.checkpoint.metadata
        assert (said.step, said.resumable, said.weights, said.notes) == (step, True, True, ())
        assert (said.format, said.tensors) == ("torch distributed", 4 + 3 * 4)
    way = "bound" if options else "named"
    resumed = train(desk, "resumed", "with_dcp.py", *options, ranks=2, resume=found[0].checkpoint.id, way=way)
    check_resumed(resumed, whole, 3, within=EXACT)
    assert names(listed(desk, "resumed")) == ["step-6"]


def test_deepspeed_resumes_from_a_save_and_from_its_layout(desk: Desk) -> None:
    whole = train(desk, "whole", "with_deepspeed.py", ranks=2)
    found = listed(desk, "whole")
    assert names(found) == ["global_step3", "global_step6"]
    check_bytes(found, whole)
    for one, step in zip(found, (3, 6), strict=True):
        assert len(one.files) == 3
        said = one.checkpoint.metadata
        assert (said.step, said.version, said.resumable, said.weights) == (step, version("deepspeed"), True, True)
    assert found[1].companions["latest"] == "global_step6"
    assert "zero_to_fp32.py" in found[1].companions
    resumed = train(desk, "resumed", "with_deepspeed.py", ranks=2, resume=found[0].checkpoint.id)
    check_resumed(resumed, whole, 3, within=EXACT)
    longer = ("--steps", "9")
    on = train(desk, "on", "with_deepspeed.py", *longer, ranks=2, resume=found[1].checkpoint.id, way="layout")
    assert list(on.losses) == [7, 8, 9]


def test_accelerate_rotates_before_it_saves_and_loses_nothing(desk: Desk) -> None:
    options = ["--total-limit", "1", "--save-every", "2"]
    whole = train(desk, "whole", "with_accelerate.py", *options)
    found = listed(desk, "whole")
    assert names(found) == [f"checkpoints/checkpoint_{number}" for number in range(3)]
    check_bytes(found, whole)
    for one, step in zip(found, (2, 4, 6), strict=True):
        said = one.checkpoint.metadata
        assert (said.step, said.resumable, said.weights, said.format) == (step, True, True, "safetensors")
    resumed = train(desk, "resumed", "with_accelerate.py", *options, resume=found[1].checkpoint.id)
    check_resumed(resumed, whole, 4, within=EXACT)
    assert names(listed(desk, "resumed")) == ["checkpoints/checkpoint_2"]


def test_accelerates_ranks_save_one_checkpoint_together(desk: Desk) -> None:
    run = train(desk, "job", "with_accelerate.py", ranks=2)
    found = listed(desk, "job")
    assert names(found) == ["checkpoints/checkpoint_0", "checkpoints/checkpoint_1"]
    check_bytes(found, run)
    assert all({"random_states_0.pkl", "random_states_1.pkl"} <= one.files.keys() for one in found)
