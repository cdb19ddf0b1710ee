"""What a save of the victim's holds, and whether it is all of one step. Only tensors and numbers are unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def state(step: int, size: int, tensors: int) -> dict[str, Tensor]:
    """So many tensors of `size` bytes, every number of which is the step."""
    return {f"w{number}": torch.full((size // 4,), float(step)) for number in range(tensors)}


def check(files: Mapping[str, Path]) -> int:
    """Load every file, by name; the one step that all of them hold. Raises where one cannot be loaded or differs."""
    steps = {name: _step(name, path) for name, path in files.items()}
    if len(set(steps.values())) != 1:
        raise ValueError(f"not of one step: {steps}")
    return next(iter(steps.values()))


def _step(name: str, path: Path) -> int:
    if name.endswith(".json"):
        return int(json.loads(path.read_text())["global_step"])
    if name.endswith(".safetensors"):
        with safe_open(path, framework="pt") as opened:
            step = int(opened.metadata()["step"])
            return _same(name, step, {key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118
    loaded = torch.load(path, weights_only=True)
    return _same(name, loaded["step"], loaded["model"])


def _same(name: str, step: int, tensors: Mapping[str, Tensor]) -> int:
    if not tensors or not all(bool((tensor == step).all()) for tensor in tensors.values()):
        raise ValueError(f"{name} says step {step}, and holds other numbers")
    return step
