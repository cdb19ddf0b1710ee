"""What the programs here share: a tiny problem, ranks that find each other, and what each says of what it did.

Each program trains for `--steps` steps, saves below FLEXAI_OUTPUT_CHECKPOINT_DIR as its framework does, and goes on
from FLEXAI_INPUT_CHECKPOINT_DIR if that is set. It prints a line for each step and each save:

    loss STEP VALUE             the training loss of that step, all digits
    saved {"PATH": "SHA256"}    the files of one save, as they lie in the output directory when it is done
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

OUTPUT = Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
INPUT = os.environ.get("FLEXAI_INPUT_CHECKPOINT_DIR")
FEATURES = 4
BATCH = 8
RANK = int(os.environ.get("RANK", "0"))
MEETING_PLACE = f"file://{os.environ.get('MEETING_PLACE')}"
RANKS = int(os.environ.get("WORLD_SIZE", "1"))


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every program has."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--save-every", type=int, default=3, metavar="STEPS")
    return options


def network(features: int = FEATURES) -> nn.Sequential:
    """The same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 16), nn.Tanh(), nn.Linear(16, 1))


def batch(step: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Inputs (BATCH, FEATURES) and targets (BATCH, 1). They follow from step and rank: a resume repeats none."""
    numbers = torch.Generator().manual_seed(1000 * rank + step)
    inputs = torch.randn(BATCH, FEATURES, generator=numbers)
    return inputs, inputs.sin().sum(dim=1, keepdim=True)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Train on the batch of `step`; returns its loss."""
    inputs, targets = batch(step)
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()
    return loss.item()


@contextmanager
def together() -> Iterator[None]:
    """Meet the other ranks, if there are any, over loopback alone; the place to meet is a file: nobody has to listen.

    Whatever holds the group must have gone at the end: torch 2.13 hangs now and then where DDP is the last to let go.
    """
    if RANKS == 1:
        yield
        return
    torch.distributed.init_process_group("gloo", init_method=MEETING_PLACE, rank=RANK, world_size=RANKS)
    yield
    gc.collect()
    torch.distributed.destroy_process_group()


def tell_loss(step: int, loss: float) -> None:
    if RANK == 0:
        print(f"loss {step} {loss!r}", flush=True)


def tell_saved(*paths: str | Path, root_files: bool = False) -> None:
    """Say which files a save left: `paths`, or all below them, and with `root_files` those at the output's root."""
    if RANK == 0:
        files = {str(file.relative_to(OUTPUT)): _digest(file) for path in paths for file in _files(OUTPUT / path)}
        if root_files:
            files |= {file.name: _digest(file) for file in OUTPUT.iterdir() if file.is_file()}
        print(f"saved {json.dumps(files)}", flush=True)


def _files(path: Path) -> Iterable[Path]:
    return [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
