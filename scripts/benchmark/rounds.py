"""A case on all places by turns: A B, B A, A B …, so that what changes on the machine changes for all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scripts.benchmark.machine import warm_memory
from scripts.benchmark.payload import Payload
from scripts.benchmark.places import Place
from scripts.benchmark.registry import Case, Trial

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Spread:
    """The median of some figures, the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(median(figures), min(figures), max(figures))


@dataclass(frozen=True)
class Result:
    """Seconds of each round, by the place's name."""

    case: Case
    work: int
    seconds: Mapping[str, Sequence[float]]

    def speed(self, place: str, against: str) -> Spread | None:
        """How fast `place` was, as a multiple of `against` in the same round; None where that one took no part."""
        if against not in self.seconds:
            return None
        return Spread.of([b / a for a, b in zip(self.seconds[place], self.seconds[against], strict=True)])


def measure(case: Case, payload: Payload, places: Sequence[Place], rounds: int) -> Result:
    """Run `case` in each of `places`, a first time to warm up and then `rounds` times."""
    taking_part = [place for place in places if place.writable or case.reads]
    trials: list[tuple[Place, Trial]] = []
    seconds: dict[str, list[float]] = {place.name: [] for place in taking_part}
    try:
        for place in taking_part:
            warm_memory(case.memory(payload.sizes), places[0].path)
            trials.append((place, case.start(payload, place)))
            place.settle()
        for number in range(rounds + 1):
            for place, trial in trials if number % 2 == 0 else reversed(trials):
                taken = _run_once(case, place, trial, case.memory(payload.sizes), places[0].path)
                if number:
                    seconds[place.name].append(taken)
    finally:
        for _, trial in trials:
            trial.finish()
    return Result(case, case.work(payload.sizes), seconds)


def _run_once(case: Case, place: Place, trial: Trial, memory: int, scratch: Path) -> float:
    os.sync()  # what the last run left to be written is not this one's burden
    if case.cold:
        DROP_CACHES.write_text("3\n")
    warm_memory(memory, scratch)
    start = time.perf_counter()
    loaded = trial.run()
    taken = time.perf_counter() - start
    del loaded
    if not case.reads:
        place.settle()
    trial.clean()
    place.settle()
    return taken


def can_drop_caches() -> bool:
    """Whether the cold cases can be run."""
    return os.geteuid() == 0 and os.access(DROP_CACHES, os.W_OK)
