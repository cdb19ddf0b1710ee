"""Train with Lightning; ModelCheckpoint keeps the best and, in one of three forms, the last.

copy    last.ckpt is a save of its own
link    last.ckpt is a symlink to the newest
copied  the same where symlinks are refused: Lightning copies the newest
none    no last.ckpt
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from task import BATCH, FEATURES, INPUT, OUTPUT, network, parser, tell_loss, tell_saved
from task import batch as batch_of
from torch import nn

warnings.filterwarnings("ignore")
BATCHES = 3  # an epoch


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.layers(inputs), targets)
        tell_loss(self.global_step + 1, loss.item())
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        inputs, targets = batch
        self.log("val_loss", nn.functional.mse_loss(self.layers(inputs), targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Rows(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The rows of `batches` batches, from number `first` on."""

    def __init__(self, first: int, batches: int) -> None:
        self.batches = [batch_of(first + number) for number in range(batches)]

    def __len__(self) -> int:
        return len(self.batches) * BATCH

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self.batches[index // BATCH]
        assert inputs.shape == (BATCH, FEATURES)
        return inputs[index % BATCH], targets[index % BATCH]


class Tell(Callback):
    """Says what lies in the directory once the checkpoints of an epoch are written."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch:
            tell_saved("checkpoints")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        tell_saved("checkpoints")


def refuse(*arguments: object, **more: object) -> None:
    raise OSError("symlinks are not for everybody here")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--last", default="none", choices=["none", "copy", "link", "copied"])
    options.add_argument("--top", type=int, default=2)
    asked = options.parse_args()
    if asked.last == "copied":
        os.symlink = refuse
    keep = ModelCheckpoint(
        dirpath=OUTPUT / "checkpoints",
        monitor="val_loss",
        save_top_k=asked.top,
        save_last={"none": None, "copy": True}.get(asked.last, "link"),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=asked.steps // BATCHES,
        callbacks=[keep, Tell()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=OUTPUT,
    )
    found = sorted(Path(INPUT).glob("*.ckpt")) if INPUT else []
    loaders = [torch.utils.data.DataLoader(Rows(*rows), batch_size=BATCH) for rows in ((0, BATCHES), (900, 1))]
    trainer.fit(Module(), *loaders, ckpt_path=str(found[0]) if found else None)


if __name__ == "__main__":
    main()
