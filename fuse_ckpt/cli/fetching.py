"""`fuse-ckpt checkpoint fetch`: out of the store, into a directory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, formats
from fuse_ckpt.cli.resumable import SHORT, files, include_option, resumable, warn_of_failure
from fuse_ckpt.cli.rules import GivenPath
from fuse_ckpt.cli.settings import Settings, absolute

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint


@click.command("fetch", short_help="Copy one out of the store.")
@click.argument("reference", metavar="REF")
@click.option("--destination", type=GivenPath(), metavar="DIR", help="Default: ./NAME, else ./SHORT-ID.")
@include_option
@click.option(
    "--force", is_flag=True, help="Write into a directory that is not empty; replaces files of the same names."
)
@click.option("--sync", is_flag=True, help="Wait until all is on the disk: a power cut takes nothing away then.")
@click.pass_obj
def fetch_checkpoint(
    settings: Settings, reference: str, destination: Path | None, include: tuple[str, ...], force: bool, sync: bool
) -> None:
    """Copy a checkpoint's files out of the store, each checked against its digest (alias: pull).

    The destination appears whole or not at all. A fetch that was interrupted leaves a directory beside it, and the same
    command goes on with that. Where the disk can share extents (XFS, btrfs), no byte is copied. As with cp, the disk
    has it all some seconds later, or at once with --sync.
    """
    with access.store_with(settings, reference) as (store, [found]):
        warn_of_failure(found)
        target = absolute(destination if destination is not None else _default_destination(found))
        found = access.brought(store, found, settings, include)
        from fuse_ckpt import transfer

        with resumable(f"fetch {found.id[-SHORT:]}", settings) as progress:
            done = transfer.fetch(store, found, target, include=include, force=force, durable=sync, progress=progress)
    click.echo(f"Fetched {files(done.files, done.size)} into {formats.visible(str(done.path))}")


def _default_destination(found: Checkpoint) -> Path:
    last = found.name.rpartition("/")[2]
    return Path(found.id[-SHORT:] if last in ("", ".", "..") else f"./{last}")


pull_checkpoint = copy.copy(fetch_checkpoint)
pull_checkpoint.hidden = True
pull_checkpoint.name = "pull"
