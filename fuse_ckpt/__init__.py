"""A filesystem that keeps every checkpoint a training job saves, and gives each of them back.

For programs and notebooks: `open_store`. It is imported when it is used, so that `import fuse_ckpt` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuse_ckpt import errors
    from fuse_ckpt.api import Checkpoint, Checkpoints, CheckpointStore, File, open_store

__all__ = ["Checkpoint", "CheckpointStore", "Checkpoints", "File", "errors", "open_store"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":
        return import_module("fuse_ckpt.errors")
    return getattr(import_module("fuse_ckpt.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
