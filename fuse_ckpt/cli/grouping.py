"""The two options that say what becomes a checkpoint, and when, where the rules do not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., object])

_DAY = 86400.0  # seconds


def grouping_options(command: Command) -> Command:
    """Add --unit and --quiet-period."""
    quiet_period = click.option(
        "--quiet-period",
        type=click.FloatRange(0, _DAY),
        callback=_number,
        metavar="S",
        help="Commit what has no better sign of its end after S seconds without a change; else 5, or 30 where several "
        "processes write.",
    )
    units = click.option(
        "--unit",
        "units",
        multiple=True,
        callback=_globs,
        metavar="GLOB",
        help="What fits is one checkpoint: a file, or a directory with all that is below it. A path below the output "
        "directory, as in 'exp/run*' or '**/weights'; * stays within one name, ** does not. May be repeated.",
    )
    return units(quiet_period(command))


def _globs(ctx: click.Context, param: click.Parameter, globs: tuple[str, ...]) -> tuple[str, ...]:
    for glob in globs:
        parts = [part for part in glob.split("/") if part]
        if not parts or {".", ".."} & set(parts):
            raise click.BadParameter(
                f"{glob!r} fits nothing: give a path below the output directory, as in 'exp/run*'.", ctx, param
            )
    return globs


def _number(ctx: click.Context, param: click.Parameter, seconds: float | None) -> float | None:
    if seconds is not None and seconds != seconds:  # "nan" is within every range
        raise click.BadParameter("nan is no number of seconds.", ctx, param)
    return seconds
