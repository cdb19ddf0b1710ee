"""What a trace says, and how it is stretched: the same events at other times. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.model import Unit
from fuse_ckpt.staging.units import UnitRules

TRACES = Path(__file__).parents[1] / "data" / "traces"
_WRITES = ("create", "open")


class Event(Struct, frozen=True):
    """One event, as recorder.py writes it. `t`: seconds."""

    t: float
    op: str
    path: str = ""
    to: str = ""
    target: str = ""
    file: int = 0
    pid: int = 0
    size: int = 0
    truncated: bool = False
    changed: bool = False
    death: str | None = None
    text: str | None = None


Trace = list[Event]
Pace = Callable[[Trace], Trace]


def load(name: str) -> Trace:
    lines = (TRACES / f"{name}.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Event) for line in lines]


def as_recorded(trace: Trace) -> Trace:
    return trace


def at_once(trace: Trace) -> Trace:
    """Everything happens in one moment, but for the ends of the processes."""
    return [replace(event, t=60.0 if event.op == "exit" else 0.0) for event in trace]


def apart(seconds: float) -> Pace:
    """So long a pause before each save: training goes on for a while."""
    return lambda trace: _with_pauses(trace, seconds, list(_begins(trace)))


def gathers(seconds: float, pause: float = 600.0) -> Pace:
    """So long a pause before each file of a save: the ranks send their parts, and nothing is open. Saves are `pause`
    apart."""

    def stretched(trace: Trace) -> Trace:
        begins = list(_begins(trace))
        between = [
            event.op == "create" and not begins[at] and _nothing_open(trace[:at]) for at, event in enumerate(trace)
        ]
        return _with_pauses(_with_pauses(trace, seconds, between), pause, begins)

    return stretched


def slow_rank(file: str, seconds: float, pause: float = 600.0) -> Pace:
    """Whoever writes the files of that name does it so much later. Saves are `pause` apart."""

    def stretched(trace: Trace) -> Trace:
        trace = apart(pause)(trace)
        late = {event.pid for event in trace if event.op == "create" and event.path.endswith(file)}
        assert len(late) == 1, f"{len(late)} processes write {file}"
        files = {event.file for event in trace if event.op in _WRITES and event.pid in late}
        shifted = [
            replace(event, t=event.t + seconds) if event.op != "mkdir" and (event.pid in late or event.file in files)
            else event
            for event in trace
        ]  # fmt: skip
        return sorted(shifted, key=lambda event: event.t)

    return stretched


def _begins(trace: Sequence[Event]) -> Iterator[bool]:
    """Of each event whether a save begins with it."""
    rules = UnitRules()
    current: Unit | None = None
    for event in trace:
        path = f"{event.path}/x" if event.op == "mkdir" else event.path
        unit = rules.member_of(path) if event.op in ("create", "mkdir", "open") else None
        again = event.truncated and "/" not in event.path
        yield unit is not None and (unit != current or again) and bool(current)
        current = unit or current


def _nothing_open(before: Sequence[Event]) -> bool:
    opened = {event.file for event in before if event.op in _WRITES}
    return opened <= {event.file for event in before if event.op == "close"}


def _with_pauses(trace: Trace, seconds: float, where: Sequence[bool]) -> Trace:
    late, made = 0.0, []
    for event, pause in zip(trace, where, strict=True):
        late += seconds if pause else 0.0
        made.append(replace(event, t=event.t + late))
    return made
