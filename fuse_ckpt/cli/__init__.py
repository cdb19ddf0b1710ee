"""The command line: the only room that prints and reads the environment."""

from __future__ import annotations

from fuse_ckpt.cli.app import main

__all__ = ["main"]
