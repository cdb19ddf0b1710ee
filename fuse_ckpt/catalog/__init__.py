"""The catalog: a Delta table beside the checkpoints of a shared object store, one row for each, for queries in SQL.

Derived, and never asked by anything of ours: what is in it can be lost, and made anew from the decisions.
Needs the extra `catalog` (deltalake); this door and `rows` do not.
"""

from __future__ import annotations

import importlib.util

from fuse_ckpt.errors import FuseCkptError

from .rows import Row, row_of
from .syncing import Brought, append, sync

__all__ = ["Brought", "Row", "append", "check_installed", "is_installed", "row_of", "sync"]


def is_installed() -> bool:
    """Whether the extra is there. Imports nothing: it is 130 MB of code."""
    return all(importlib.util.find_spec(name) is not None for name in ("deltalake", "arro3"))


def check_installed() -> None:
    """Raise FuseCkptError where the extra is not there."""
    if not is_installed():
        raise FuseCkptError("The catalog needs deltalake: pip install 'fuse-ckpt[catalog]'.")
