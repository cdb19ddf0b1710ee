"""`index rebuild`, and what `doctor --store` says of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import formats
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fuse_ckpt.store import Ailment


@click.group("index", short_help="Build the index anew.")
def index() -> None:
    """The index says which checkpoints there are; each commit also leaves a manifest beside the blobs, from which the
    index can be built anew."""


@index.command("rebuild", short_help="From the manifests.")
@click.pass_obj
def rebuild_index(settings: Settings) -> int:
    """Build the index anew from the manifests and from what the old one still says; the old one is kept aside.

    Checkpoints whose bytes are not all there are failed then. No job of the store may be mounted meanwhile.
    """
    from fuse_ckpt.store import rebuild

    rebuilt = rebuild(settings.store)
    click.echo(f"Recorded {rebuilt.checkpoints} checkpoints and {rebuilt.runs} runs.")
    if rebuilt.kept is not None:
        click.echo(f"The old index is kept as {formats.visible(str(rebuilt.kept))}: remove it when all is well.")
    for problem in rebuilt.problems:
        click.echo(formats.visible(problem), err=True)
    return 1 if rebuilt.problems else 0


def examine_store(settings: Settings, *, repair: bool) -> int:
    """Print what is amiss with the store; the exit code: 0 nothing, 4 something."""
    from fuse_ckpt.store import examine, mend

    found = examine(settings.store)
    _tell(found, "mended" if repair else "--repair")
    if not repair or not found:
        click.echo(f"{len(found)} things are amiss with {formats.visible(str(settings.store))}" if found else _WELL)
        return 4 if found else 0
    left = mend(settings.store)
    for one in left:
        click.echo(f"left     {formats.visible(one.what)}")
    click.echo(f"{len(found)} things were amiss, {len(left)} are left" if left else "All is mended.")
    return 4 if left else 0


_WELL = "Index, blobs, manifests and working trees agree (checkpoint verify reads the bytes, too)."


def _tell(found: Sequence[Ailment], how: str) -> None:
    for one in found:
        click.echo(f"amiss    {formats.visible(one.what)}")
        click.echo(f"{'':7}  → {f'{how}: {one.cure}' if one.cure else 'look at it yourself'}")
