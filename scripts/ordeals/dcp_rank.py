"""One rank of a training whose model is split among all (FSDP2), saved by torch.distributed.checkpoint.

dcp_rank.py LOG STEPS: trains until it has done STEPS steps, from FLEXAI_INPUT_CHECKPOINT_DIR if that is set, and saves
every other one below FLEXAI_OUTPUT_CHECKPOINT_DIR. RANK, WORLD_SIZE, MEETING (an address for all) and ATTEMPT say who
it is. A line in LOG for each thing done:

    began ATTEMPT STEP   loss ATTEMPT STEP VALUE   saved ATTEMPT STEP {"PATH": "SHA256"}   (its own files)
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
FEATURES, WIDTH, BATCH = 32, 2048, 8  # 70,000 weights: with AdamW's moments 0.2 MB a rank
SAVE_EVERY = 2  # steps
PAUSE = float(os.environ.get("PAUSE", "0.3"))  # seconds a step, so that a save has its time
PATIENCE = timedelta(seconds=60)  # for the other ranks


def main() -> None:
    log, steps = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=os.environ["MEETING"], rank=RANK, world_size=RANKS, timeout=PATIENCE
    )
    train(log, steps)
    torch.distributed.destroy_process_group()


def train(log: Path, steps: int) -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    model = fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = load(model, optimizer)
    output = os.environ.get("FLEXAI_OUTPUT_CHECKPOINT_DIR")
    tell(log, "began", step)
    while step < steps:
        loss = learn(model, optimizer, step)
        step += 1
        tell(log, "loss", step, repr(loss))
        if output and step % SAVE_EVERY == 0:
            save(model, optimizer, step, Path(output), log)
        time.sleep(PAUSE)


def learn(model: Any, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Train on this rank's batch of `step`, which follows from both; returns its loss."""
    numbers = torch.Generator().manual_seed(1000 * RANK + step)
    inputs = torch.randn(BATCH, FEATURES, generator=numbers)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(inputs), inputs.sin().sum(dim=1, keepdim=True))
    loss.backward()
    optimizer.step()
    return float(loss.item())


def state_of(model: Any, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "step": step}


def load(model: Any, optimizer: torch.optim.Optimizer) -> int:
    """Go on from the input, if there is one; returns the step that is done."""
    source = os.environ.get("FLEXAI_INPUT_CHECKPOINT_DIR")
    if not source:
        return 0
    state = state_of(model, optimizer, 0)
    dcp.load(state, checkpoint_id=source)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return int(state["step"])


def save(model: Any, optimizer: torch.optim.Optimizer, step: int, output: Path, log: Path) -> None:
    place = output / f"step-{step}"
    dcp.save(state_of(model, optimizer, step), checkpoint_id=place)
    # What another rank has written lies here only where all have one output directory.
    mine = [file for file in place.iterdir() if file.name.startswith(f"__{RANK}_") or RANK == 0]
    tell(log, "saved", step, json.dumps({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in mine}))


def tell(log: Path, *words: object) -> None:
    kind, *rest = words
    with log.open("ab", buffering=0) as file:
        file.write(f"{' '.join(map(str, (kind, os.environ['ATTEMPT'], *rest)))}\n".encode())


if __name__ == "__main__":
    main()
