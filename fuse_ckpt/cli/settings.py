"""What a person chose before the command: the store, how much is said, and the environment, which is read here only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fuse_ckpt.places import absolute, store_path

__all__ = ["INPUT_VARIABLE", "OUTPUT_VARIABLE", "Settings", "absolute"]

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
        return cls(
            store=store_path(environment),
            colour=not environment.get("NO_COLOR"),
            environment=environment,
        )
