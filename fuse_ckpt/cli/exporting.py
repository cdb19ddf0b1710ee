"""`fuse-ckpt checkpoint export` and `push`: to an object store, and from one or from this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fuse_ckpt.cli import access, formats
from fuse_ckpt.cli.resumable import SHORT, files, include_option, patience_option, resumable, warn_of_failure
from fuse_ckpt.cli.rules import GivenPath
from fuse_ckpt.cli.settings import Settings, absolute

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Store
    from fuse_ckpt.transfer import LocalSource, RemoteSource


@click.command("export", short_help="Copy one to an object store.")
@click.argument("reference", metavar="REF")
@click.option("--storage-provider", "connection", required=True, metavar="NAME", help="A connection of storage create.")
@click.option("--destination-path", required=True, metavar="PATH", help="BUCKET/PREFIX, or a path below the directory.")
@include_option
@click.option("--force", is_flag=True, help="Write where something else is; replaces objects of the same names.")
@click.option("--no-read-back", is_flag=True, help="Trust the object store: compare the sizes alone at the end.")
@patience_option
@click.pass_obj
def export_checkpoint(
    settings: Settings,
    /,
    reference: str,
    connection: str,
    destination_path: str,
    no_read_back: bool,
    patience: float,
    **chosen: Any,
) -> None:
    """Write a checkpoint's files to an object store, or a directory, as plain objects that any tool reads.

    At the end each is read back and compared with its digest; then fuse-ckpt.json is written, which tells of them all:
    where that is not, the export is not whole. After an interruption the same command sends only what is missing.
    A symlink to a file of the checkpoint becomes a copy of the file; others are named in fuse-ckpt.json alone.
    """
    with access.store_with(settings, reference) as (store, [found]):
        warn_of_failure(found)
        found = access.brought(store, found, settings)
        from fuse_ckpt import transfer

        known = store.connection(connection)
        place = transfer.place_of(known, destination_path, "--destination-path")
        remote = transfer.Remote(known, place.bucket, settings.environment, patience)
        with resumable(f"export {found.id[-SHORT:]}", settings) as progress:
            done = transfer.export(store, found, remote, place, read_back=not no_read_back, progress=progress, **chosen)
    click.echo(_exported(done, connection))
    if done.left_out:
        click.echo(
            f"Named in fuse-ckpt.json alone, for they lead to no file of it: {formats.cell(done.left_out)}", err=True
        )


def _exported(done: Any, connection: str) -> str:
    checked = "read back and compared" if done.read_back else "compared by size"
    fresh = "" if done.sent == done.files else f", {done.files - done.sent} of them were there"
    return formats.visible(f"Exported {files(done.files, done.size)} to {connection}:{done.place}, {checked}{fresh}")


@click.command("push", short_help="Take files in as a checkpoint.")
@click.argument("name")
@click.option("--file", "path", type=GivenPath(), metavar="PATH", help="A file or a directory.")
@click.option("--storage-provider", "connection", metavar="NAME", help="A connection of storage create.")
@click.option("--source-path", metavar="PATH", help="BUCKET/PREFIX there, or a path below its directory.")
@click.option("--follow-symlinks", is_flag=True, help="Take the files that symlinks out of the directory lead to.")
@click.option("--force", is_flag=True, help="Keep files that are not whole, as a failed checkpoint.")
@patience_option
@click.pass_obj
def push_checkpoint(
    settings: Settings,
    name: str,
    path: Path | None,
    connection: str | None,
    source_path: str | None,
    follow_symlinks: bool,
    force: bool,
    patience: float,
) -> None:
    """Take files into the store as a checkpoint called NAME, which is then a REF. What is pushed is copied.

    Pushing the same NAME again makes NAME@2, and NAME means that one. From an object store an export of fuse-ckpt
    comes back with its names, modes and symlinks, and is compared with its digests; any other files come as they are.
    """
    _check_sources(path, connection, source_path)
    from fuse_ckpt import transfer

    transfer.check_checkpoint_name(name)
    chosen = (path, connection or "", source_path or "", follow_symlinks, patience)
    with (
        resumable(f"push {formats.visible(name)}", settings) as progress,
        _opened(settings, *chosen) as (store, source),
    ):
        pushed = transfer.push(store, name, source, force=force, progress=progress)
    warn_of_failure(pushed)
    click.echo(_pushed(pushed))


def _check_sources(path: Path | None, connection: str | None, source_path: str | None) -> None:
    if path is not None and connection is None and source_path is None:
        return
    if path is None and connection is not None and source_path is not None:
        return
    raise click.UsageError("Give either --file PATH, or --storage-provider NAME and --source-path PATH.")


@contextmanager
def _opened(
    settings: Settings, path: Path | None, connection: str, source_path: str, follow: bool, patience: float
) -> Iterator[tuple[Store, LocalSource | RemoteSource]]:
    """The store, and what is to be pushed into it. Only files that are there make a store that is not."""
    from fuse_ckpt import transfer
    from fuse_ckpt.errors import UnknownConnection
    from fuse_ckpt.store import Store

    if path is not None:
        local = transfer.LocalSource(absolute(path), settings.store, follow=follow)
        with Store.open(settings.store) as store:
            yield store, local
        return
    with access.existing_store(settings) as there:
        if there is None:
            raise UnknownConnection(connection)
        known = there.connection(connection)
        place = transfer.place_of(known, source_path, "--source-path")
        remote = transfer.Remote(known, place.bucket, settings.environment, patience)
        yield there, transfer.RemoteSource(remote, place)


def _pushed(pushed: Checkpoint) -> str:
    return formats.visible(f"Pushed {pushed.name}@{pushed.ordinal}: {pushed.id}, {files(pushed.files, pushed.size)}")
