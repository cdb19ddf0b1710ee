"""Hugging Face's Trainer: alone, as two ranks, with an adapter of PEFT's, and what it leaves at the root."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from tests.frameworks.runs import Run, check_bytes, check_resumed, listed, names, train
from tests.mount.runs import Desk

pytestmark = [pytest.mark.mount, pytest.mark.once, pytest.mark.frameworks, pytest.mark.timeout(900)]

PROGRAM = "with_trainer.py"

# The Trainer logs the loss as the mean since the last entry, of numbers that a resume gathers anew.
ROUNDING = 1e-6


def eval_losses(run: Run) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"^eval (\d+) (\S+)$", run.output, re.MULTILINE)}


def test_what_the_trainer_rotates_away_is_kept_and_it_resumes_from_it(desk: Desk) -> None:
    """One checkpoint is kept and the best loaded at the end: the trainer removes each, one of them just written."""
    options = ["--save-every", "2", "--total-limit", "1", "--best", "--export"]
    whole = train(desk, "whole", PROGRAM, *options)
    found = listed(desk, "whole")
    assert names(found) == ["checkpoint-2", "checkpoint-4", "checkpoint-6", ""]
    check_bytes(found, whole)
    left = {path.name for path in (desk.store / "jobs" / "whole" / "work").glob("checkpoint-*")}
    assert len(left) == 1
    evaluated = eval_losses(whole)
    for one, step in zip(found[:3], (2, 4, 6), strict=True):
        said = one.checkpoint.metadata
        assert (said.step, said.model, said.version) == (step, "GPT2LMHeadModel", version("transformers"))
        assert (said.inference_ready, said.resumable, said.format) == (True, True, "safetensors")
        assert (said.train_loss, said.eval_loss) == (whole.losses[step], evaluated[step])
        assert said.epoch == pytest.approx(step * 2 / 40)
        assert said.notes == ()
    root = found[3].checkpoint.metadata
    assert (root.step, root.model, root.inference_ready, root.resumable) == (None, "GPT2LMHeadModel", True, False)

    resumed = train(desk, "resumed", PROGRAM, *options, resume=found[1].checkpoint.id)
    check_resumed(resumed, whole, 4, within=ROUNDING)
    assert names(listed(desk, "resumed")) == ["checkpoint-6", ""]


def test_saves_every_50_of_99_steps_and_an_export_are_three_checkpoints(desk: Desk) -> None:
    run = train(desk, "job", PROGRAM, "--save-every", "50", "--steps", "99", "--export")
    found = listed(desk, "job")
    assert names(found) == ["checkpoint-50", "checkpoint-99", ""]
    check_bytes(found, run)
    assert [one.checkpoint.metadata.step for one in found] == [50, 99, None]


def test_two_ranks_save_one_checkpoint_together_and_resume_from_it(desk: Desk) -> None:
    whole = train(desk, "whole", PROGRAM, ranks=2)
    found = listed(desk, "whole")
    assert names(found) == ["checkpoint-3", "checkpoint-6"]
    check_bytes(found, whole)
    assert all({"rng_state_0.pth", "rng_state_1.pth"} <= one.files.keys() for one in found)
    resumed = train(desk, "resumed", PROGRAM, ranks=2, resume=found[0].checkpoint.id, way="named")
    check_resumed(resumed, whole, 3, within=ROUNDING)
    assert names(listed(desk, "resumed")) == ["checkpoint-6"]


def test_an_adapter_of_peft_names_its_base_model(desk: Desk) -> None:
    whole = train(desk, "whole", PROGRAM, "--adapter")
    found = listed(desk, "whole")
    assert names(found) == ["checkpoint-3", "checkpoint-6"]
    check_bytes(found, whole)
    for one, step in zip(found, (3, 6), strict=True):
        said = one.checkpoint.metadata
        assert (said.step, said.model, said.version) == (step, "example/tiny-gpt2", version("peft"))
        assert (said.inference_ready, said.resumable, said.train_loss) == (False, True, whole.losses[step])
    resumed = train(desk, "resumed", PROGRAM, "--adapter", resume=found[0].checkpoint.id)
    check_resumed(resumed, whole, 3, within=ROUNDING)
