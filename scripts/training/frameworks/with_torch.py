"""Save with torch.save or safetensors alone, in the forms that people use.

flat        step-3.pt, step-6.pt: a file each
fixed       last.pt, written over
directory   step-3/{model.pt,optimizer.pt,progress.json}
safetensors step-3/{model.safetensors,optimizer.pt}
replaced    last.pt, by a temporary file and a rename
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from task import INPUT, OUTPUT, network, parser, tell_loss, tell_saved, train_step
from torch import nn


class Training:
    def __init__(self) -> None:
        self.model: nn.Module = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.step = 0

    def state(self, loss: float) -> dict[str, object]:
        return {
            "step": self.step,
            "loss": loss,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, model: dict[str, torch.Tensor], optimizer: dict[str, object], step: int) -> None:
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.step = step

    def save(self, form: str, loss: float) -> Path:
        """Save in that form; returns the path."""
        state = self.state(loss)
        if form in ("flat", "fixed"):
            path = OUTPUT / ("last.pt" if form == "fixed" else f"step-{self.step}.pt")
            torch.save(state, path)
        elif form == "replaced":
            path = OUTPUT / "last.pt"
            torch.save(state, OUTPUT / "last.pt.tmp")
            os.replace(OUTPUT / "last.pt.tmp", path)
        else:
            path = OUTPUT / f"step-{self.step}"
            path.mkdir()
            self._save_parts(form, path, loss)
        return path

    def _save_parts(self, form: str, path: Path, loss: float) -> None:
        if form == "safetensors":
            save_file(self.model.state_dict(), path / "model.safetensors", {"step": str(self.step), "loss": str(loss)})
        else:
            torch.save(self.model.state_dict(), path / "model.pt")
            (path / "progress.json").write_text(json.dumps({"step": self.step, "loss": loss}))
        torch.save(self.optimizer.state_dict(), path / "optimizer.pt")

    def resume(self, place: Path) -> None:
        """Go on from a checkpoint of any of the forms: its files are in `place`."""
        flat = [*place.glob("step-*.pt"), *place.glob("last.pt")]
        if flat:
            state = torch.load(flat[0], weights_only=True)
            self.load(state["model"], state["optimizer"], state["step"])
            return
        optimizer = torch.load(place / "optimizer.pt", weights_only=True)
        step = int(optimizer["state"][0]["step"])
        tensors = place / "model.safetensors"
        model = load_file(tensors) if tensors.exists() else torch.load(place / "model.pt", weights_only=True)
        self.load(model, optimizer, step)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--form", default="flat")
    asked = options.parse_args()
    training = Training()
    if INPUT:
        training.resume(Path(INPUT))
    while training.step < asked.steps:
        loss = train_step(training.model, training.optimizer, training.step)
        training.step += 1
        tell_loss(training.step, loss)
        if training.step % asked.save_every == 0:
            tell_saved(training.save(asked.form, loss))


if __name__ == "__main__":
    main()
