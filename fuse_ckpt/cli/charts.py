"""Curves drawn with characters, for a terminal: braille dots where they can be written, else stars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # braille: the bit of a dot, by row and column
_BRAILLE = 0x2800
_TICKS_EVERY = 5  # rows between two labels of the vertical axis
_SPAN_MIN = 1e-290  # below it, powers of ten end
_LABELS_APART = 3  # columns between two labels of the horizontal axis

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A line of points, or with a `mark` the points alone, each as that character."""

    label: str
    points: Points
    colour: str
    mark: str = ""


@dataclass(frozen=True)
class Scale:
    """The values that the first and the last place of an axis stand for."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Scale:
        known = list(values) or [0.0]
        low, high = min(known), max(known)
        if low == high:
            room = abs(low) / 2 or 0.5
            return cls(low - room, high + room)
        return cls(low, high)

    def widened(self, share: float) -> Scale:
        """With so much of its length added at either end."""
        room = share * (self.high - self.low)
        return Scale(self.low - room, self.high + room) if math.isfinite(room) else self

    def place(self, value: float, places: int) -> int:
        """The place of a value, from 0 to `places` - 1."""
        # As parts of the largest: the difference of two huge losses may be more than a float can hold.
        unit = max(abs(self.low), abs(self.high))
        share = (value / unit - self.low / unit) / (self.high / unit - self.low / unit)
        return min(places - 1, max(0, round(share * (places - 1))))

    def value(self, place: int, places: int) -> float:
        share = place / max(1, places - 1)
        return self.low * (1 - share) + self.high * share


def nice_ticks(scale: Scale, most: int) -> list[float]:
    """At most `most` round values that lie on the scale: multiples of 1, 2 or 5 and a power of ten."""
    span = scale.high - scale.low
    if most < 1 or not _SPAN_MIN < span < math.inf:
        return []
    rough = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * rough for factor in (1, 2, 5, 10, 20) if span / (factor * rough) <= most)
    first, last = math.ceil(scale.low / step), math.floor(scale.high / step)
    return [number * step for number in range(first, last + 1)]


class Canvas:
    """A field of `columns` × `rows` characters. Dots lie closer where braille can be written."""

    def __init__(self, columns: int, rows: int, *, braille: bool) -> None:
        self.columns = columns
        self.rows = rows
        self._across, self._down = (2, 4) if braille else (1, 1)
        self._bits = [[0] * columns for _ in range(rows)]
        self._marks: dict[tuple[int, int], str] = {}
        self._colours: dict[tuple[int, int], str] = {}

    def draw(self, series: Series, across: Scale, up: Scale) -> None:
        width, height = self.columns * self._across, self.rows * self._down
        places = [(across.place(x, width), height - 1 - up.place(y, height)) for x, y in series.points]
        if series.mark:
            for x, y in places:
                self._set(x, y, series.colour)
                self._marks[y // self._down, x // self._across] = series.mark
            return
        for start, end in zip(places, places[1:] or places, strict=False):
            for x, y in _between(start, end):
                self._set(x, y, series.colour)

    def _set(self, x: int, y: int, colour: str) -> None:
        row, column = y // self._down, x // self._across
        self._bits[row][column] |= _DOTS[y % self._down][x % self._across]
        self._colours[row, column] = colour

    def row(self, row: int) -> Iterator[tuple[str, str | None]]:
        """The characters of a row, those of one colour together."""
        for colour, cells in groupby(range(self.columns), lambda column: self._colours.get((row, column))):
            yield "".join(self._char(row, column) for column in cells), colour

    def _char(self, row: int, column: int) -> str:
        bits = self._bits[row][column]
        dots = chr(_BRAILLE | bits) if self._down > 1 else "*"
        return self._marks.get((row, column), dots if bits else " ")


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for number in range(steps + 1):
        share = number / steps
        yield round(start[0] + share * (end[0] - start[0])), round(start[1] + share * (end[1] - start[1]))


@dataclass(frozen=True)
class Chart:
    """Series over a common axis, and the places below it that are marked."""

    series: Sequence[Series]
    marked: Sequence[float]
    columns: int
    rows: int
    unicode: bool  # whether the stream can carry box and braille characters

    def lines(self) -> Iterator[list[tuple[str, str | None]]]:
        """Each line as pieces of text with their colour: the field with its axes, then what is marked."""
        across = Scale.of([x for one in self.series for x, _ in one.points] + list(self.marked))
        up = Scale.of(y for one in self.series for _, y in one.points)
        labels = {row: f"{up.value(self.rows - 1 - row, self.rows):.4g}" for row in self._labelled()}
        margin = max(map(len, labels.values()))
        canvas = Canvas(max(1, self.columns - margin - 2), self.rows, braille=self.unicode)
        for one in self.series:
            canvas.draw(one, across, up)
        bar, tick, corner, line, notch, mark = "│┤└─┬▲" if self.unicode else "|++-+^"
        for row in range(self.rows):
            axis = tick if row in labels else bar
            yield [(f"{labels.get(row, ''):>{margin}} {axis}", None), *canvas.row(row)]
        ticks = self._ticks(across, canvas.columns)
        rule = "".join(notch if column in ticks else line for column in range(canvas.columns))
        yield [(f"{'':>{margin}} {corner}{rule}", None)]
        yield [(f"{'':>{margin}}  {_labelled_line(ticks, canvas.columns)}", None)]
        if self.marked:
            places = {across.place(step, canvas.columns) for step in self.marked}
            yield [(f"{'':>{margin}}  {''.join(mark if c in places else ' ' for c in range(canvas.columns))}", None)]

    def _labelled(self) -> list[int]:
        rows = list(range(0, self.rows - 1, _TICKS_EVERY))
        return [*(row for row in rows if self.rows - 1 - row >= 2 or row == 0), self.rows - 1]

    def _ticks(self, across: Scale, columns: int) -> dict[int, str]:
        """The label of each tick of the horizontal axis, by column."""
        widest = len(str(int(across.high))) + _LABELS_APART
        ticks = nice_ticks(across, max(1, columns // (2 * widest)))
        return {across.place(value, columns): f"{value:g}" if value % 1 else str(int(value)) for value in ticks}


def _labelled_line(ticks: dict[int, str], columns: int) -> str:
    line = ""
    for column, label in sorted(ticks.items()):
        start = max(0, min(column - len(label) // 2, columns - len(label)))
        if start >= len(line) + bool(line):
            line += " " * (start - len(line)) + label
    return line
