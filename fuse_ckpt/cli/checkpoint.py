"""`fuse-ckpt checkpoint …`: look at checkpoints; the other commands have modules of their own."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import click

from fuse_ckpt.cli import access, committing, inspection, lifecycle, listing, render, scanning
from fuse_ckpt.cli.collecting import gc
from fuse_ckpt.cli.exporting import export_checkpoint, push_checkpoint
from fuse_ckpt.cli.fetching import fetch_checkpoint, pull_checkpoint
from fuse_ckpt.cli.settings import Settings

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


_ROWS = 1_000  # of a table, unless asked for more: nobody reads them, and a terminal draws 3,000 in a second


@click.group("checkpoint", short_help="Inspect, fetch, delete checkpoints.")
def checkpoint() -> None:
    """Checkpoints of all jobs.

    A REF is an id, a tag, the name of a pushed checkpoint, JOB:latest, JOB:best, JOB/NAME@N (the N-th of that NAME),
    JOB/NAME (the newest), or a prefix or suffix of an id (4 characters or more).
    """


@checkpoint.command("list", short_help="List those of the whole store.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, oldest first.")
@click.option("--job", metavar="JOB", help="Of this training job only.")
@click.option("--name", metavar="GLOB", help="Only those whose NAME fits the glob.")
@click.option("--tag", metavar="TAG", help="Only the one that has the tag.")
@click.option("--status", type=click.Choice(["available", "failed", "pending", "deleted"]), help="In this state only.")
@click.option("--sort", type=click.Choice(list(_SORTABLE)), help="Smallest first; by time unless given.")
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N",
    help="The newest N; with --sort, the first N. A table has 1,000 unless given.",
)  # fmt: skip
@click.pass_obj
def list_checkpoints(
    settings: Settings,
    as_json: bool,
    job: str | None,
    name: str | None,
    tag: str | None,
    status: str | None,
    sort: str | None,
    limit: int | None,
) -> None:
    """List the checkpoints of the store, oldest first: the available and the failed ones."""
    if tag is not None and status is not None:
        raise click.UsageError("--tag names one checkpoint: --status cannot choose among it.")
    by_time = sort is None or sort == "time"
    rows = limit or (None if as_json else _ROWS)
    wanted = _Wanted(job, name, tag, status, None if by_time else sort, rows and rows + 1)  # one tells of more
    with access.existing_store(settings) if job is None else access.store_with_job(settings, job) as store:
        records = [] if store is None else _records(store, wanted)
    more = rows is not None and len(records) > rows
    if not by_time:
        records = listing.sorted_by(records, _SORTABLE[sort or ""])[:rows]
    elif rows is not None:
        records = records[-rows:]
    if as_json:
        click.echo(render.to_json(records))
    else:
        columns = listing.TRASH_COLUMNS if status == "deleted" else listing.STORE_COLUMNS
        listing.show("List of Checkpoints", columns, records, colour=settings.colour)
        if more and limit is None:
            which = "newest" if by_time else "first"
            click.echo(f"Only the {which} {_ROWS:,} are shown: --limit N shows N, --json all.", err=True)


class _Wanted(NamedTuple):
    """Which checkpoints a person wants to see. `sort` None: by time."""

    job: str | None
    name: str | None
    tag: str | None
    status: str | None
    sort: str | None
    limit: int | None


def _records(store: Store, wanted: _Wanted) -> list[listing.Record]:
    from fuse_ckpt.model import State

    if wanted.status == State.PENDING:
        found = _pending(store, wanted)
        return found if wanted.sort or wanted.limit is None else found[-wanted.limit :]
    checkpoints = _found(store, wanted)
    if wanted.status == State.DELETED:
        return listing.deleted_records(checkpoints, store.expiries(checkpoints), time.time_ns())
    return [listing.record(each) for each in checkpoints]


def _found(store: Store, wanted: _Wanted) -> list[Checkpoint]:
    from fuse_ckpt.model import State
    from fuse_ckpt.store import SORTABLE

    if wanted.tag is not None:
        tagged = [each for each in (store.tagged(wanted.tag),) if each is not None]
        return [each for each in tagged if wanted.job in (None, each.job) and _fits(each.name, wanted)]
    states = [State.AVAILABLE, State.FAILED] if wanted.status is None else [State(wanted.status)]
    by = (wanted.sort or "").replace("-", "_")
    if by in SORTABLE and wanted.limit is not None and wanted.name is None:
        return store.smallest(wanted.job, states, by, wanted.limit)
    return store.checkpoints(wanted.job, states, None if wanted.sort else wanted.limit, wanted.name)


def _pending(store: Store, wanted: _Wanted) -> list[listing.Record]:
    jobs = [wanted.job] if wanted.job is not None else [each.name for each in store.jobs()]
    units = ((each, unit) for each in jobs for unit in access.pending(store, each))
    return [listing.pending_record(unit, each) for each, unit in units if _fits(unit.name, wanted)]


def _fits(name: str, wanted: _Wanted) -> bool:
    return wanted.name is None or fnmatchcase(name, wanted.name)


@checkpoint.command("inspect", short_help="Tell everything about one.")
@click.argument("reference", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@click.pass_obj
def inspect_checkpoint(settings: Settings, reference: str, as_json: bool) -> None:
    """Tell everything about one checkpoint, its files and their digests."""
    with access.store_with(settings, reference) as (store, [found]):
        found = access.described(store, found, settings)
        manifest = store.manifest(found.id)
        document = inspection.of_checkpoint(manifest, scanning.kept(store, manifest), store.replica(found.id))
    click.echo(render.to_json(document) if as_json else render.to_yaml(document))


for _command in (
    fetch_checkpoint,
    pull_checkpoint,
    export_checkpoint,
    push_checkpoint,
    committing.commit,
    committing.promote,
    *lifecycle.COMMANDS,
    gc,
):
    checkpoint.add_command(_command)
