"""Save with torch.distributed.checkpoint, as two ranks of DDP or of FSDP2, at once or while training goes on."""

from __future__ import annotations

import argparse
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from task import INPUT, OUTPUT, RANKS, network, parser, tell_loss, tell_saved, together, train_step
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


class Training:
    """The whole state, as torch.distributed.checkpoint asks for it."""

    def __init__(self, *, sharded: bool) -> None:
        model = network()
        self.model: Any = model
        if sharded:
            mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
            self.model = fully_shard(model, mesh=mesh)
        elif RANKS > 1:
            self.model = DistributedDataParallel(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.step = state["step"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sharded", action="store_true", help="FSDP2")
    options.add_argument("--wait", action=argparse.BooleanOptionalAction, default=True, help="wait for each save")
    asked = options.parse_args()
    with together():
        train(asked)


def train(asked: argparse.Namespace) -> None:
    training = Training(sharded=asked.sharded)
    if INPUT:
        state = training.state_dict()
        dcp.load(state, checkpoint_id=INPUT)
        training.load_state_dict(state)
    # Its own group: on the default one its collectives would meet those of the gradients in any order, and hang.
    group = None if asked.wait else torch.distributed.new_group(backend="gloo")
    saving: tuple[str, Future[Any]] | None = None
    while training.step < asked.steps:
        loss = train_step(training.model, training.optimizer, training.step)
        training.step += 1
        tell_loss(training.step, loss)
        if training.step % asked.save_every == 0:
            finish(saving)
            name = f"step-{training.step}"
            if asked.wait:
                dcp.save(training.state_dict(), checkpoint_id=OUTPUT / name)
                tell_saved(name)
            else:
                future: Any = dcp.async_save(training.state_dict(), checkpoint_id=OUTPUT / name, process_group=group)
                saving = name, future
    finish(saving)


def finish(saving: tuple[str, Future[Any]] | None) -> None:
    """Wait for a save that goes on beside training."""
    if saving is not None:
        name, future = saving
        future.result()
        tell_saved(name)


if __name__ == "__main__":
    main()
