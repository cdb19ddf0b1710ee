"""torch.save and safetensors as people use them, without a framework."""

from __future__ import annotations

import pytest

from tests.frameworks.runs import check_bytes, check_resumed, listed, names, train
from tests.mount.runs import Desk

pytestmark = [pytest.mark.mount, pytest.mark.once, pytest.mark.frameworks, pytest.mark.timeout(600)]

MODEL = 4  # tensors
OPTIMIZER = 3 * MODEL  # AdamW's step and two moments of each


@pytest.mark.parametrize(
    ("form", "expected", "way"),
    [
        ("flat", ["step-3.pt", "step-6.pt"], "bound"),
        ("fixed", ["last.pt", "last.pt"], "bound"),
        ("replaced", ["last.pt", "last.pt"], "named"),
        ("directory", ["step-3", "step-6"], "named"),
        ("safetensors", ["step-3", "step-6"], "bound"),
    ],
)
def test_each_save_is_a_checkpoint_and_training_goes_on_from_it(
    desk: Desk, form: str, expected: list[str], way: str
) -> None:
    whole = train(desk, "whole", "with_torch.py", "--form", form)
    found = listed(desk, "whole")
    assert names(found) == expected
    check_bytes(found, whole)
    for one, step in zip(found, (3, 6), strict=True):
        said = one.checkpoint.metadata
        assert (said.step, said.resumable, said.weights, said.inference_ready) == (step, True, True, False)
        assert said.train_loss == (None if form == "directory" else whole.losses[step])
        assert said.format == ("safetensors" if form == "safetensors" else "torch zip")
        assert said.tensors == MODEL + OPTIMIZER

    # The same instructions on the same numbers, one thread: not a bit may differ.
    resumed = train(desk, "resumed", "with_torch.py", "--form", form, resume=found[0].checkpoint.id, way=way)
    check_resumed(resumed, whole, 3)
    again = listed(desk, "resumed")
    assert names(again) == expected[1:]
    assert again[0].checkpoint.parent == found[0].checkpoint.id
