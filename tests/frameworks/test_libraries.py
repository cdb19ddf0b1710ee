"""Lightning, diffusers and sentence-transformers."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from tests.frameworks.runs import check_bytes, check_resumed, listed, names, train
from tests.mount.runs import Desk

pytestmark = [pytest.mark.mount, pytest.mark.once, pytest.mark.frameworks, pytest.mark.timeout(900)]

FIRST, SECOND, LAST = (f"checkpoints/{name}.ckpt" for name in ("epoch=0-step=3", "epoch=1-step=6", "last"))


@pytest.mark.parametrize(
    ("last", "top", "expected"),
    [
        ("none", "1", [FIRST, SECOND]),
        ("copy", "2", [FIRST, LAST, SECOND, LAST]),
        ("link", "2", [FIRST, SECOND]),
        ("copied", "2", [FIRST, LAST, SECOND, LAST]),
    ],
)
def test_lightnings_best_and_last_are_checkpoints_whatever_the_form_of_last(
    desk: Desk, last: str, top: str, expected: list[str]
) -> None:
    run = train(desk, "job", "with_lightning.py", "--last", last, "--top", top)
    # An epoch takes milliseconds here, and what is written over at once is sealed at once: before what was closed just
    # before it. The ids follow that, the timestamps follow the saves.
    found = sorted(listed(desk, "job"), key=lambda one: one.checkpoint.created_ns)
    assert names(found) == expected
    check_bytes(found, run)
    for one in found:
        said = one.checkpoint.metadata
        step = {FIRST: 3, SECOND: 6}.get(one.checkpoint.name, 3 * one.checkpoint.ordinal)
        assert (said.step, said.epoch, said.version) == (step, step / 3 - 1, version("lightning"))
        assert (said.resumable, said.weights, said.format) == (True, True, "torch zip")
        assert said.eval_loss is not None
        assert said.train_loss is None
    left = {path.name for path in (desk.store / "jobs" / "job" / "work" / "checkpoints").iterdir()}
    assert ("epoch=0-step=3.ckpt" in left) == (top == "2"), "what is not among the best was removed"
    if last == "link":
        assert found[1].companions["checkpoints/last.ckpt"] == "epoch=1-step=6.ckpt"


def test_lightning_goes_on_from_a_checkpoint_in_the_input_directory(desk: Desk) -> None:
    whole = train(desk, "whole", "with_lightning.py")
    first = listed(desk, "whole")[0]
    resumed = train(desk, "resumed", "with_lightning.py", resume=first.checkpoint.id)
    check_resumed(resumed, whole, 3)
    assert list(resumed.losses) == [4, 5, 6]
    assert names(listed(desk, "resumed")) == [SECOND]


def test_a_pipeline_of_diffusers_is_a_checkpoint_each_time_it_is_saved(desk: Desk) -> None:
    whole = train(desk, "whole", "with_diffusers.py")
    found = listed(desk, "whole")
    assert names(found) == ["pipe", "pipe"]
    check_bytes(found, whole)
    for one in found:
        said = one.checkpoint.metadata
        assert (said.model, said.version) == ("DDPMPipeline", version("diffusers"))
        assert (said.inference_ready, said.resumable, said.weights, said.format) == (False, False, True, "safetensors")
    # SGD keeps no state, so the weights alone are the whole of it.
    resumed = train(desk, "resumed", "with_diffusers.py", "--first", "3", resume="whole/pipe@1")
    check_resumed(resumed, whole, 3)


def test_a_sentence_transformer_is_one_checkpoint_with_its_modules(desk: Desk) -> None:
    whole = train(desk, "whole", "with_sentence_transformers.py")
    found = listed(desk, "whole")
    assert names(found) == ["step-3", "step-6"]
    check_bytes(found, whole)
    for one, step in zip(found, (3, 6), strict=True):
        said = one.checkpoint.metadata
        assert (said.step, said.model, said.version) == (step, "BertModel", version("transformers"))
        assert "1_Pooling/config.json" in one.files
    resumed = train(
        desk, "resumed", "with_sentence_transformers.py", "--first", "3", resume=found[0].checkpoint.id, way="named"
    )
    check_resumed(resumed, whole, 3, within=1e-5)
