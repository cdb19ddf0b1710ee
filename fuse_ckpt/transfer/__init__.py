"""Checkpoints leave the store for an ordinary directory."""

from __future__ import annotations

from fuse_ckpt.transfer.fetch import Fetched, fetch
from fuse_ckpt.transfer.loose import fetch_loose

__all__ = ["Fetched", "fetch", "fetch_loose"]
