"""Save the whole state with Accelerate, which numbers its saves and removes the oldest before it writes the next."""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from task import INPUT, OUTPUT, network, parser, tell_loss, tell_saved, together
from task import train_step as one_step


class Progress:
    """What is saved besides: `register_for_checkpointing` asks for these two methods."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--total-limit", type=int)
    asked = options.parse_args()
    with together():
        train(asked)


def train(asked: argparse.Namespace) -> None:
    project = ProjectConfiguration(str(OUTPUT), automatic_checkpoint_naming=True, total_limit=asked.total_limit)
    accelerator = Accelerator(cpu=True, project_config=project)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if INPUT:
        accelerator.load_state(INPUT)
        accelerator.project_configuration.iteration = progress.step // asked.save_every
    while progress.step < asked.steps:
        loss = one_step(model, optimizer, progress.step)
        schedule.step()
        progress.step += 1
        tell_loss(progress.step, loss)
        if progress.step % asked.save_every == 0:
            number = progress.step // asked.save_every - 1
            accelerator.save_state()
            accelerator.wait_for_everyone()
            tell_saved(f"checkpoints/checkpoint_{number}")


if __name__ == "__main__":
    main()
