"""`fuse-ckpt checkpoint …`: look at checkpoints, take one out of the store, delete some."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, committing, formats, inspection, listing, render
from fuse_ckpt.cli.settings import Settings, absolute

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Store

_SORTABLE = {
    "time": "timestamp",
    "name": "name",
    "job": "job",
    "step": "step",
    "train-loss": "trainLoss",
    "eval-loss": "evalLoss",
    "size": "sizeBytes",
}
_SHORT = 8  # characters at an id's end that people type


@click.group("checkpoint", short_help="Inspect, fetch, delete checkpoints.")
def checkpoint() -> None:
    """Checkpoints of all jobs.

    A REF is an id, a prefix or suffix of one (4 characters or more), JOB:latest, JOB:best, JOB/NAME, or JOB/NAME@N.
    """


@checkpoint.command("list", short_help="List those of the whole store.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, oldest first.")
@click.option("--job", metavar="JOB", help="Of this training job only.")
@click.option("--name", metavar="GLOB", help="Only those whose NAME fits the glob.")
@click.option("--status", type=click.Choice(["available", "failed", "pending", "deleted"]), help="In this state only.")
@click.option("--sort", type=click.Choice(list(_SORTABLE)), help="Smallest first; by time unless given.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The newest N; with --sort, the first N.")
@click.pass_obj
def list_checkpoints(
    settings: Settings,
    as_json: bool,
    job: str | None,
    name: str | None,
    status: str | None,
    sort: str | None,
    limit: int | None,
) -> None:
    """List the checkpoints of the store, oldest first: the available and the failed ones."""
    with access.existing_store(settings) if job is None else access.store_with_job(settings, job) as store:
        records = [] if store is None else _records(store, job, status)
    if name is not None:
        records = [item for item in records if fnmatchcase(str(item["name"]), name)]
    if sort is not None and sort != "time":
        records = listing.sorted_by(records, _SORTABLE[sort])[:limit]
    elif limit is not None:
        records = records[-limit:]
    if as_json:
        click.echo(render.to_json(records))
    else:
        listing.show("List of Checkpoints", listing.STORE_COLUMNS, records, colour=settings.colour)


def _records(store: Store, job: str | None, status: str | None) -> list[listing.Record]:
    from fuse_ckpt.model import State

    if status == State.PENDING:
        jobs = [job] if job is not None else [each.name for each in store.jobs()]
        return [listing.pending_record(unit, each) for each in jobs for unit in access.pending(store, each)]
    states = [State.AVAILABLE, State.FAILED] if status is None else [State(status)]
    return [listing.record(each) for each in store.checkpoints(job, states=states)]


@checkpoint.command("inspect", short_help="Tell everything about one.")
@click.argument("reference", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@click.pass_obj
def inspect_checkpoint(settings: Settings, reference: str, as_json: bool) -> None:
    """Tell everything about one checkpoint, its files and their digests."""
    with access.store_with(settings, reference) as (store, [found]):
        document = inspection.of_checkpoint(store.manifest(found.id))
    click.echo(render.to_json(document) if as_json else render.to_yaml(document))


@checkpoint.command("fetch", short_help="Copy one out of the store.")
@click.argument("reference", metavar="REF")
@click.option("--destination", type=click.Path(path_type=Path), metavar="DIR", help="Default: ./NAME, else ./SHORT-ID.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that fit; may be given more than once.")
@click.option(
    "--force", is_flag=True, help="Write into a directory that is not empty; replaces files of the same names."
)
@click.pass_obj
def fetch_checkpoint(
    settings: Settings, reference: str, destination: Path | None, include: tuple[str, ...], force: bool
) -> None:
    """Copy a checkpoint's files out of the store, each checked against its digest (alias: pull)."""
    with access.store_with(settings, reference) as (store, [found]):
        if found.state == "failed":
            click.echo(f"{found.id} is a failed checkpoint: {formats.visible(found.failure or '')}", err=True)
        target = absolute(destination if destination is not None else _default_destination(found))
        from fuse_ckpt import transfer

        with render.progress_bar(f"fetch {found.id[-_SHORT:]}", colour=settings.colour) as progress:
            done = transfer.fetch(store, found, target, include=include, force=force, progress=progress)
    files = "1 file" if done.files == 1 else f"{done.files} files"
    click.echo(f"Fetched {files} ({formats.size(done.size)}) into {formats.visible(str(done.path))}")


def _default_destination(found: Checkpoint) -> Path:
    last = found.name.rpartition("/")[2]
    return Path(found.id[-_SHORT:] if last in ("", ".", "..") else f"./{last}")


@checkpoint.command("delete", short_help="Delete some of them.")
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask. Needed where standard input is no terminal.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.pass_obj
def delete_checkpoints(settings: Settings, references: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Delete checkpoints: all of them, or none where one is unknown or in use."""
    with access.store_with(settings, *references) as (store, found):
        if not (yes or dry_run):
            _confirm(found)
        if not dry_run:
            store.delete([each.id for each in found])
    for each in found:
        click.echo(f"{'Would delete' if dry_run else 'Deleted'} {_described(each)}")


def _confirm(found: Sequence[Checkpoint]) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on: --yes deletes without asking.")
    for each in found:
        click.echo(_described(each), err=True)
    question = "Delete it?" if len(found) == 1 else f"Delete these {len(found)}?"
    click.confirm(question, abort=True, err=True)


def _described(each: Checkpoint) -> str:
    return formats.visible(f"{each.id} ({each.job}/{each.name}@{each.ordinal})")


_pull = copy.copy(fetch_checkpoint)
_pull.hidden = True
checkpoint.add_command(_pull, "pull")
checkpoint.add_command(committing.commit)
checkpoint.add_command(committing.promote)
