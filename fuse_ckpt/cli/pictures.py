"""Curves as a picture in a file: SVG is written here, PNG is matplotlib's work."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from fuse_ckpt.cli import formats
from fuse_ckpt.cli.charts import Scale, nice_ticks
from fuse_ckpt.cli.curves import Curve, Points
from fuse_ckpt.errors import FuseCkptError, UsageError

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 45, 60
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#d62728")
_DOTS_MAX = 100  # points of a line that are still drawn as dots, too
_DASHES = ' stroke-dasharray="6 3"'
_INCH = 100  # pixels of a PNG


def check(output: Path) -> None:
    """Whether a picture can be written to a file of that name. Raises UsageError, FuseCkptError."""
    if output.suffix.lower() not in _WRITERS:
        raise UsageError(f"{output} is no picture that can be written: give it a name that ends in .svg or .png.")
    if not output.parent.is_dir():
        raise UsageError(f"There is no directory {output.parent} to write {output.name} into.")
    if output.suffix.lower() == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise FuseCkptError(
                "A PNG needs matplotlib: pip install 'fuse-ckpt[plot]', or let the file's name end in .svg."
            ) from error


def write(output: Path, curves: Sequence[Curve]) -> None:
    """Write the curves as the kind of picture that the name says, whole or not at all. Raises OSError."""
    descriptor, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_WRITERS[output.suffix.lower()](curves))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, output)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _title(curves: Sequence[Curve]) -> str:
    return f"Loss of {', '.join(curve.label for curve in curves)}"


def _named(curves: Sequence[Curve]) -> Iterator[tuple[str, str, Points, bool]]:
    """Label, colour and points of each line; whether it is an evaluation's."""
    for number, curve in enumerate(curves):
        several = f" of {curve.label}" if len(curves) > 1 else ""
        for shift, (what, points) in enumerate((("train loss", curve.train), ("eval loss", curve.eval))):
            if points:
                yield f"{what}{several}", COLOURS[(2 * number + shift) % len(COLOURS)], points, shift == 1


def svg(curves: Sequence[Curve]) -> bytes:
    """The picture as an SVG document, which needs no font and no program of its own."""
    return ("\n".join(_Svg(curves).lines()) + "\n").encode(errors="backslashreplace")


class _Svg:
    def __init__(self, curves: Sequence[Curve]) -> None:
        self._curves = curves
        marks = [mark.step for curve in curves for mark in curve.marks]
        self._across = Scale.of([step for curve in curves for step in curve.steps] + marks)
        self._up = Scale.of(loss for curve in curves for loss in curve.losses).widened(0.04)

    def lines(self) -> Iterator[str]:
        size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13" fill="#333">'
        yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
        yield _text(LEFT, 28, _title(self._curves), size=17)
        yield from self._axes()
        for label, colour, points, dashed in _named(self._curves):
            yield from self._line(label, colour, points, dashed)
        yield from self._checkpoints()
        yield from self._legend()
        yield "</svg>"

    def _x(self, step: float) -> float:
        return LEFT + self._across.place(step, 100_001) / 100_000 * (WIDTH - LEFT - RIGHT)

    def _y(self, loss: float) -> float:
        return HEIGHT - BOTTOM - self._up.place(loss, 100_001) / 100_000 * (HEIGHT - TOP - BOTTOM)

    def _axes(self) -> Iterator[str]:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        for loss in nice_ticks(self._up, 8):
            y = self._y(loss)
            yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e5e5e5"/>'
            yield _text(LEFT - 8, y + 4, f"{loss:.6g}", anchor="end")
        for step in nice_ticks(self._across, 10):
            x = self._x(step)
            yield f'<path d="M{x:.1f} {bottom}v5" stroke="#333"/>'
            yield _text(x, bottom + 20, f"{step:.10g}", anchor="middle")
        yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#333"/>'
        yield _text((LEFT + right) / 2, HEIGHT - 12, "step", anchor="middle")

    def _line(self, label: str, colour: str, points: Points, dashed: bool) -> Iterator[str]:
        places = [f"{self._x(step):.1f},{self._y(loss):.1f}" for step, loss in points]
        style = f'stroke="{colour}" stroke-width="2" stroke-linejoin="round"{_DASHES * dashed}'
        drawn = " ".join(places)
        yield f'<polyline points="{drawn}" fill="none" {style}><title>{escape(label)}</title></polyline>'
        if len(points) <= _DOTS_MAX:
            for place in places:
                x, y = place.split(",")
                yield f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>'

    def _checkpoints(self) -> Iterator[str]:
        bottom = HEIGHT - BOTTOM
        for mark in (mark for curve in self._curves for mark in curve.marks):
            x = self._x(mark.step)
            what = formats.visible(f"{mark.checkpoint.job}/{mark.checkpoint.name}@{mark.checkpoint.ordinal}")
            told = escape(f"{what}, step {mark.step}, {mark.checkpoint.id}")
            yield f'<path d="M{x:.1f} {bottom - 9}l5 9h-10z" fill="#555"><title>{told}</title></path>'

    def _legend(self) -> Iterator[str]:
        """A line for each series, at the right, where losses are low."""
        right, y = WIDTH - RIGHT - 40, TOP + 10
        for label, colour, _, dashed in _named(self._curves):
            yield f'<path d="M{right} {y}h30" stroke="{colour}" stroke-width="2"{_DASHES * dashed}/>'
            yield _text(right - 10, y + 4, label, anchor="end")
            y += 20
        if any(curve.marks for curve in self._curves):
            yield f'<path d="M{right + 15} {y - 5}l5 9h-10z" fill="#555"/>'
            yield _text(right - 10, y + 4, "checkpoint", anchor="end")


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def png(curves: Sequence[Curve]) -> bytes:
    """The picture as a PNG, drawn by matplotlib without a display and without its global state."""
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / _INCH, HEIGHT / _INCH), dpi=_INCH, layout="constrained")
    axes = figure.subplots()
    for label, colour, points, dashed in _named(curves):
        steps, losses = zip(*points, strict=True)
        dot = "." if len(points) <= _DOTS_MAX else ""
        axes.plot(steps, losses, label=_plain(label), color=colour, linestyle="--" if dashed else "-", marker=dot)
    if marks := [mark.step for curve in curves for mark in curve.marks]:
        where = axes.get_xaxis_transform()  # steps across, the height of the axes up
        axes.plot(marks, [0.015] * len(marks), "^", color="#555", label="checkpoint", transform=where, markersize=6)
    axes.set_title(_plain(_title(curves)), loc="left")
    axes.set_xlabel("step")
    axes.grid(axis="y", color="#e5e5e5")
    axes.legend()
    file = BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _plain(text: str) -> str:
    """matplotlib takes what is between two dollars for a formula."""
    return text.replace("$", r"\$")


_WRITERS: Mapping[str, Callable[[Sequence[Curve]], bytes]] = {".svg": svg, ".png": png}
