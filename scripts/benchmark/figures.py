"""A single figure: what the cases, which compare places, are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What was measured, each time that it was. `unit` "" : a plain number; `goal` in words."""

    name: str
    unit: str
    values: Sequence[float]
    goal: str = ""
