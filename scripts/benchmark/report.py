"""What a person reads, and what a program reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from scripts.benchmark.figures import Figure
from scripts.benchmark.places import EXAMPLE, OURS, PLAIN, VIEW
from scripts.benchmark.rounds import Result, Spread
from scripts.benchmark.sizes import GIB

HEADINGS = ("CASE", "DIRECTORY", "SPEED ÷ PLAIN", "SPEED ÷ EXAMPLE", "SECONDS", "RATE", "GOAL")
FIGURE_HEADINGS = ("FIGURE", "MEDIAN", "FROM – TO", "GOAL")
Row = Sequence[str]


@dataclass
class Report:
    """All that a run of the bench has found so far."""

    machine: dict[str, str | int]
    options: Mapping[str, object]
    results: list[Result] = field(default_factory=list)
    daemon: list[Figure] = field(default_factory=list)
    index: list[Figure] = field(default_factory=list)

    def text(self) -> str:
        """The tables, each speed as median (smallest – largest) of the rounds."""
        parts = [", ".join(f"{name} {value}" for name, value in self.machine.items())]
        if self.results:
            parts.append(_table(HEADINGS, [row for result in self.results for row in _rows(result)]))
        for title, figures in (("The daemon", self.daemon), ("The index", self.index)):
            if figures:
                parts.append(f"{title}\n" + _table(FIGURE_HEADINGS, [_figure_row(figure) for figure in figures]))
        return "\n\n".join(parts)

    def write(self, path: Path) -> None:
        """All of it as JSON, with each round's figure."""
        content = {
            "machine": self.machine,
            "options": self.options,
            "cases": [_record(result) for result in self.results],
            "daemon": [_figure_record(figure) for figure in self.daemon],
            "index": [_figure_record(figure) for figure in self.index],
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def progress(line: str) -> None:
    """Tell a person who waits."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _rows(result: Result) -> list[Row]:
    return [
        (
            result.case.name,
            place,
            "" if place == PLAIN else _speed(result.speed(place, PLAIN)),
            "" if place in (PLAIN, EXAMPLE) else _speed(result.speed(place, EXAMPLE)),
            _seconds(Spread.of(seconds)),
            _rate(result, median(seconds)),
            result.case.goal if place in (OURS, VIEW) else "",
        )
        for place, seconds in result.seconds.items()
    ]


def _speed(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.2f} ({spread.low:.2f} – {spread.high:.2f})"


def _seconds(spread: Spread) -> str:
    digits = 3 if spread.median >= 0.1 else 5
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f} – {spread.high:.{digits}f})"


def _rate(result: Result, seconds: float) -> str:
    if result.case.unit == "bytes":
        return f"{result.work / seconds / GIB:.2f} GiB/s"
    return f"{seconds / result.work * 1e6:.1f} µs each"


def _record(result: Result) -> dict[str, object]:
    return {
        "name": result.case.name,
        "title": result.case.title,
        "goal": result.case.goal,
        "work": result.work,
        "unit": result.case.unit,
        "directories": {
            place: {
                "seconds": list(seconds),
                "median": median(seconds),
                "speed": {
                    against: asdict(speed)
                    for against in (PLAIN, EXAMPLE)
                    if against != place and (speed := result.speed(place, against)) is not None
                },
            }
            for place, seconds in result.seconds.items()
        },
    }


def _figure_row(figure: Figure) -> Row:
    spread = Spread.of(figure.values)
    unit = f" {figure.unit}" if figure.unit else ""
    between = f"{spread.low:.3f} – {spread.high:.3f}" if len(figure.values) > 1 else ""
    return figure.name, f"{spread.median:.3f}{unit}", between, figure.goal


def _figure_record(figure: Figure) -> dict[str, object]:
    return {**asdict(figure), "median": median(figure.values)}


def _table(headings: Row, rows: Sequence[Row]) -> str:
    """Columns side by side; those without any content are left out."""
    columns = [column for column in zip(headings, *rows, strict=True) if any(column[1:])]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*padded, strict=True))
