"""What the names of a checkpoint and of its files tell, where their bytes do not."""

from __future__ import annotations

import re
from collections.abc import Collection

from fuse_ckpt.metadata.values import STEP_END

_FORMATS = {
    ".safetensors": "safetensors",
    ".distcp": "torch distributed",
    ".keras": "Keras",
    ".h5": "HDF5",
    ".gguf": "GGUF",
    ".onnx": "ONNX",
    ".npz": "NumPy",
    ".pkl": "pickle",
}
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|sampler|scaler|rng_state|random_states|custom_checkpoint|training_args|distrib_optim).*"
    r"|.*optim_states\.pt"
)
_OPTIMIZER = re.compile(r"optimizer(_\d+)?\.(pt|bin)|.*optim_states\.pt|distrib_optim\.pt")

# Accelerate counts its saves where it names them itself, and leaves the random numbers' state in each.
_COUNTED_SAVE = re.compile(r"(.*/)?checkpoints/checkpoint_\d+")
_STEP_NAME = re.compile(
    r"(?:^|[-_.=])(?P<word>global_?step|step|iteration|iter|ba|checkpoint|ckpt)[-_=.]?(?P<number>\d+)"
    r"(?![0-9a-z]|-\d\d-\d\d)",  # checkpoint_2025-06-05 is a day
    re.ASCII | re.IGNORECASE,
)


def format_of_name(name: str) -> str | None:
    """The format that a file's ending stands for, of those that hold weights; None for any other."""
    return next((format for ending, format in _FORMATS.items() if name.endswith(ending)), None)


def never_holds_weights(name: str) -> bool:
    """Whether a file of that name is a training's state beside the model's."""
    return _NO_WEIGHTS.fullmatch(name) is not None


def is_weights_name(name: str) -> bool:
    return format_of_name(name) is not None and not never_holds_weights(name)


def is_optimizer_name(name: str) -> bool:
    return _OPTIMIZER.fullmatch(name) is not None


def step_of_name(unit_name: str, names: Collection[str]) -> int | None:
    """The number that a step-like name carries; an epoch's is none. `names`: those of the checkpoint's files."""
    name = unit_name.rpartition("/")[2]
    if _COUNTED_SAVE.fullmatch(unit_name) and any(one.startswith("random_states_") for one in names):
        return None
    if name.isdecimal() and name.isascii():
        return _bounded(name)
    found = {match["word"].lower(): match["number"] for match in _STEP_NAME.finditer(name)}
    for word in ("global_step", "globalstep", "step", "iteration", "iter", "ba", "checkpoint", "ckpt"):
        if word in found:
            return _bounded(found[word])
    return None


def _bounded(digits: str) -> int | None:
    step = int(digits) if len(digits) <= 20 else STEP_END
    return step if step < STEP_END else None
