"""Where the store lies unless a person says otherwise. Pure: the environment is an argument."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def store_path(environment: Mapping[str, str]) -> Path:
    """FUSE_CKPT_STORE, else `${XDG_DATA_HOME:-~/.local/share}/fuse-ckpt`, from the root on."""
    return absolute(Path(environment.get("FUSE_CKPT_STORE") or _default(environment)))


def _default(environment: Mapping[str, str]) -> str:
    data = environment.get("XDG_DATA_HOME", "")
    # The XDG rules: a relative path there is to be ignored.
    home = data if os.path.isabs(data) else "~/.local/share"
    return os.path.join(home, "fuse-ckpt")


def absolute(path: Path) -> Path:
    """`path` from the root on, `~` expanded, symlinks kept: a stale mount point cannot be resolved."""
    return Path(os.path.abspath(os.path.expanduser(path)))
