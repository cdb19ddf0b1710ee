"""Checkpoints for programs and notebooks. What is public here stays as it is; docs/api.md shows its use.

    import fuse_ckpt, torch

    with fuse_ckpt.open_store() as store:
        best = store.get("digits:best")
        with store.open(best, "model.pt") as file:
            weights = torch.load(file, weights_only=True)

Nothing here writes to a store, and no daemon is needed. What goes wrong raises a class of `fuse_ckpt.errors`.
"""

from fuse_ckpt.api.opened import CheckpointStore, open_store
from fuse_ckpt.api.views import Checkpoint, Checkpoints, File

__all__ = ["Checkpoint", "CheckpointStore", "Checkpoints", "File", "open_store"]
