"""The cases, by name. A case is a function that prepares a place and returns the trial that is run there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from scripts.benchmark.payload import Payload
from scripts.benchmark.places import Place
from scripts.benchmark.sizes import Sizes


def nothing() -> None:
    """No cleaning up."""


@dataclass(frozen=True)
class Trial:
    """What is timed, what cleans up behind each run of it, and what cleans up at the end."""

    run: Callable[[], object]
    clean: Callable[[], object] = nothing
    finish: Callable[[], object] = nothing


Start = Callable[[Payload, Place], Trial]
Work = Callable[[Sizes], int]


@dataclass(frozen=True)
class Case:
    """One kind of work. `work` says how much of it a run does, in bytes or in operations."""

    name: str
    start: Start
    work: Work
    unit: str  # "bytes" or "operations"
    goal: str  # in words; a speed is relative to what it names
    reads: bool = False  # also from the read view
    cold: bool = False  # the kernel's caches are dropped before each run

    def memory(self, sizes: Sizes) -> int:
        """Bytes of memory that a run newly takes, at the most: the page cache's, and the loaded tensors'."""
        return 2 * self.work(sizes) if self.unit == "bytes" else 0

    @property
    def title(self) -> str:
        return (self.start.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class Registry:
    """Cases by name, in the order in which they are run."""

    cases: dict[str, Case] = field(default_factory=dict)

    def case(
        self, name: str, work: Work, *, unit: str = "bytes", goal: str = "", reads: bool = False, cold: str = ""
    ) -> Callable[[Start], Start]:
        """Register a function as the case `name`; with `cold`, the goal of it, also as `name`-cold."""

        def register(start: Start) -> Start:
            self.cases[name] = Case(name, start, work, unit, goal, reads)
            if cold:
                self.cases[f"{name}-cold"] = Case(f"{name}-cold", start, work, unit, cold, reads, cold=True)
            return start

        return register
