"""Train with DeepSpeed's ZeRO as two ranks on the CPU; it saves global_stepN/ and writes its name into `latest`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from task import BATCH, INPUT, OUTPUT, batch, network, parser, tell_loss, tell_saved, together
from torch import nn

ROOT_FILES = ("latest", "zero_to_fp32.py")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it compiles that for minutes the first time


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--stage", type=int, default=1)
    asked = options.parse_args()
    with together():
        train(asked)


def train(asked: argparse.Namespace) -> None:
    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": asked.stage},
    }
    model = network()
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    if INPUT:
        place = Path(INPUT)
        if (place / "latest").exists():
            engine.load_checkpoint(str(place))
        else:  # the directory of one save: its name is the tag
            engine.load_checkpoint(str(place.parent), tag=place.name)
    while engine.global_steps < asked.steps:
        inputs, targets = batch(engine.global_steps)
        loss = nn.functional.mse_loss(engine(inputs), targets)
        engine.backward(loss)
        engine.step()
        tell_loss(engine.global_steps, loss.item())
        if engine.global_steps % asked.save_every == 0:
            engine.save_checkpoint(str(OUTPUT))
            tell_saved(f"global_step{engine.global_steps}", *ROOT_FILES)


if __name__ == "__main__":
    main()
