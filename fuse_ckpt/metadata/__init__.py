"""What a checkpoint says of its training: bytes in, Metadata out."""

from __future__ import annotations

from fuse_ckpt.metadata.extract import extract
from fuse_ckpt.metadata.history import History, loss_history
from fuse_ckpt.model import Metadata

__all__ = ["History", "Metadata", "extract", "loss_history"]
