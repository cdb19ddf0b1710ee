"""What a person chose before the command: the store, how much is said, and the environment, which is read here only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

OUTPUT_VARIABLE = "FLEXAI_OUTPUT_CHECKPOINT_DIR"
INPUT_VARIABLE = "FLEXAI_INPUT_CHECKPOINT_DIR"


@dataclass
class Settings:
    """One per process; the options before the command overwrite what the environment says."""

    store: Path
    colour: bool = True
    verbose: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        chosen = environment.get("FUSE_CKPT_STORE") or _default_store(environment)
        return cls(
            store=absolute(Path(chosen)),
            colour=not environment.get("NO_COLOR"),
            environment=environment,
        )


def _default_store(environment: Mapping[str, str]) -> str:
    data = environment.get("XDG_DATA_HOME", "")
    # The XDG rules: a relative path there is to be ignored.
    home = data if os.path.isabs(data) else "~/.local/share"
    return os.path.join(home, "fuse-ckpt")


def absolute(path: Path) -> Path:
    """`path` from the root on, `~` expanded, symlinks kept: a stale mount point cannot be resolved."""
    return Path(os.path.abspath(os.path.expanduser(path)))
