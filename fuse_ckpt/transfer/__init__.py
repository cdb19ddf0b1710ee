"""Checkpoints leave the store for an ordinary directory."""

from __future__ import annotations

from fuse_ckpt.transfer.fetch import Fetched, fetch

__all__ = ["Fetched", "fetch"]
