"""`checkpoint plot`: how the losses of a job went, in the terminal or as a picture."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from fuse_ckpt.cli import access, charts, formats, listing, pictures, render
from fuse_ckpt.cli.charts import Chart, Series
from fuse_ckpt.cli.curves import Curve, curves
from fuse_ckpt.cli.rules import GivenPath
from fuse_ckpt.cli.settings import Settings, absolute
from fuse_ckpt.errors import NotFound

_COLUMNS, _ROWS = 80, 16  # where there is no terminal to ask
_ROWS_MAX = 24
_ROWS_BESIDE = 8  # lines of a terminal that are left for the title, the axis, the legend and the prompt
_NARROWEST, _LOWEST = 20, 4


@click.command("plot", short_help="Draw the losses of jobs.")
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@click.option(
    "--output",
    type=GivenPath(dir_okay=False),
    metavar="FILE",
    help="Write a picture instead: FILE ends in .svg or .png.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the points as JSON.")
@click.pass_obj
def plot(settings: Settings, jobs: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Draw train and evaluation loss over the steps, and where the checkpoints are.

    What a job was resumed from comes before it, as one curve. The losses are those of the newest checkpoint's
    trainer_state.json, where it has one, else those of each checkpoint.
    """
    if output is not None:
        pictures.check(output)
    with access.store_with_job(settings, jobs[0]) as store:
        found = curves(store, jobs)
    if as_json:
        click.echo(render.to_json([_document(curve) for curve in found]))
        return
    drawn = [curve for curve in found if curve.losses]
    if not drawn:
        raise NotFound(f"No checkpoint of {', '.join(jobs)} tells a loss: there is nothing to draw.")
    if output is None:
        _draw(drawn, settings.colour)
    else:
        target = absolute(output)
        pictures.write(target, drawn)
        click.echo(f"Wrote {formats.visible(str(target))}")


def _document(curve: Curve) -> dict[str, object]:
    return {
        "jobs": list(curve.jobs),
        "train": [{"step": step, "loss": loss} for step, loss in curve.train],
        "eval": [{"step": step, "loss": loss} for step, loss in curve.eval],
        "checkpoints": [listing.record(mark.checkpoint) for mark in curve.marks],
    }


def _draw(drawn: Sequence[Curve], colour: bool) -> None:
    unicode = _can_write("⣿│▲◆", sys.stdout.encoding)
    columns, rows = _room()
    series = list(_series(drawn, unicode))
    marked = [mark.step for curve in drawn for mark in curve.marks]
    chart = Chart(series, marked, columns, rows, unicode)
    coloured = colour and sys.stdout.isatty()

    def styled(text: str, hue: str | None) -> str:
        return click.style(text, fg=hue) if coloured and hue and text.strip() else text

    lines = [render.cut(f"Loss of {', '.join(curve.label for curve in drawn)}", columns)]
    lines += ["".join(styled(*piece) for piece in line).rstrip() for line in chart.lines()]
    legend: list[tuple[str, str | None]] = [
        (f"{one.mark or ('⠒⠒' if unicode else '**')} {one.label}", one.colour) for one in series
    ]
    legend += [(f"{'▲' if unicode else '^'} {_count(len(marked))}", None)] if marked else []
    lines += [styled(render.cut(text, columns), hue) for text, hue in legend]
    click.echo("\n".join(lines), color=coloured)


def _series(drawn: Sequence[Curve], unicode: bool) -> Iterator[Series]:
    """A line for each train loss and marks for each evaluation loss; several jobs have their number at the line's end,
    so that they are told apart where there are no colours."""
    marks = "◆●■○□◇" if unicode else "o@#%&="
    for number, curve in enumerate(drawn):
        hues = [charts.COLOURS[(2 * number + n) % len(charts.COLOURS)] for n in (0, 1)]
        several = f" of {curve.label}" if len(drawn) > 1 else ""
        if curve.train:
            yield Series(f"train loss{several}", curve.train, hues[0])
        if curve.eval:
            yield Series(f"eval loss{several}", curve.eval, hues[1], marks[number % len(marks)])
        if several:
            ends = (curve.train or curve.eval)[-1:]
            yield Series(curve.label, ends, hues[0], str(number + 1))


def _room() -> tuple[int, int]:
    """The columns and rows of the field that fits the terminal."""
    if not sys.stdout.isatty():
        return _COLUMNS, _ROWS
    size = shutil.get_terminal_size((_COLUMNS, _ROWS + _ROWS_BESIDE))
    return max(_NARROWEST, size.columns), max(_LOWEST, min(_ROWS_MAX, size.lines - _ROWS_BESIDE))


def _can_write(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _count(number: int) -> str:
    return "1 checkpoint" if number == 1 else f"{number} checkpoints"
