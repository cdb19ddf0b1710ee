"""Train a small network on scikit-learn's handwritten digits, saving the newest state under one fixed name.

An ordinary training program: it knows two environment variables, and nothing of what stands behind them.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

FILE_NAME = "digits.pt"
BATCH = 64


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images (N, 64), test images (M, 64), train labels (N,), test labels (M,); the split never varies."""
    data = load_digits()
    split = train_test_split(data.data / 16.0, data.target, test_size=0.25, random_state=0)
    images, test_images, labels, test_labels = split
    return (
        torch.tensor(images, dtype=torch.float32),
        torch.tensor(test_images, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(test_labels),
    )


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


class Training:
    """The state that a checkpoint holds, and how to go on with it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = network()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.loss = nn.CrossEntropyLoss()
        self.images, self.test_images, self.labels, self.test_labels = digits()
        self.step = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.images) // BATCH)

    def batch(self) -> Tensor:
        """Return the indices of this step's batch. Their order follows from the epoch alone: a resume repeats none."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(epoch))
        return order[position * BATCH : (position + 1) * BATCH]

    def train_step(self) -> float:
        chosen = self.batch()
        self.optimizer.zero_grad()
        loss = self.loss(self.model(self.images[chosen]), self.labels[chosen])
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def eval_loss(self) -> float:
        with torch.no_grad():
            return self.loss(self.model(self.test_images), self.test_labels).item()

    def save(self, path: Path, train_loss: float, eval_loss: float) -> None:
        state = {
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "train_loss": train_loss,
            "eval_loss": eval_loss,
        }
        torch.save(state, path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        print(f"resumed at step {self.step}  epoch {state['epoch']}  loss {state['train_loss']:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoint-every", type=int, default=20, metavar="STEPS")
    parser.add_argument(
        "--pace", type=float, default=0.0, metavar="SECONDS", help="make an epoch last at least this long"
    )
    options = parser.parse_args()

    training = Training()
    if given := os.environ.get("FLEXAI_INPUT_CHECKPOINT_DIR"):
        training.resume(Path(given, FILE_NAME))
    print(f"training in process {os.getpid()}, {training.steps_per_epoch} steps to an epoch", flush=True)
    output = Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"], FILE_NAME)
    while training.step < options.epochs * training.steps_per_epoch:
        train_loss = training.train_step()
        if training.step % options.checkpoint_every == 0:
            eval_loss = training.eval_loss()
            training.save(output, train_loss, eval_loss)
            print(f"step {training.step}  train_loss {train_loss:.3f}  eval_loss {eval_loss:.3f}  saved", flush=True)
        time.sleep(options.pace / training.steps_per_epoch)
    print(f"finished at step {training.step}, after {options.epochs} epochs", flush=True)


if __name__ == "__main__":
    main()
