"""Work that takes a while, can be interrupted, and is gone on with by the same command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import formats, render
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint

SHORT = 8  # characters at an id's end that people type

patience_option = click.option(
    "--patience",
    type=click.FloatRange(min=0.1, max=3600),
    default=180.0,
    show_default=True,
    metavar="S",
    help="Seconds that a request which fails is tried again for.",
)
include_option = click.option(
    "--include", multiple=True, metavar="GLOB", help="Only files that fit; may be given more than once."
)


@contextmanager
def resumable(label: str, settings: Settings) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; and what to do after Ctrl-C, in a line on standard error."""
    try:
        with render.progress_bar(label, colour=settings.colour) as progress:
            yield progress
    except KeyboardInterrupt:
        click.echo("Interrupted: the same command goes on from here.", err=True)
        raise


def warn_of_failure(found: Checkpoint) -> None:
    """Say that a checkpoint is a failed one, and why."""
    if found.state == "failed":
        click.echo(f"{found.id} is a failed checkpoint: {formats.visible(found.failure or '')}", err=True)


def files(count: int, size: int) -> str:
    """`3 files (10 MB)`."""
    return f"{'1 file' if count == 1 else f'{count} files'} ({formats.size(size)})"
