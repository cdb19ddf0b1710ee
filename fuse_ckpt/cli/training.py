"""`fuse-ckpt training …`: run a job, and look at jobs and what they saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, ending, formats, inspection, listing, render
from fuse_ckpt.cli.run import run
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from fuse_ckpt.store import Store


@click.group("training", short_help="Run and inspect training jobs.")
def training() -> None:
    """Training jobs: run one, list them, see what they saved."""


for _command in (run, ending.delete_job, ending.fetch_job):
    training.add_command(_command)


@training.command("checkpoints", short_help="List what a job saved.")
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, oldest first.")
@click.option("--wide", is_flag=True, help="Show SIZE, STATUS, RESUMABLE, TAGS and REPLICATED too.")
@click.option("--all", "everything", is_flag=True, help="Add the failed ones, and what is not committed yet.")
@click.pass_obj
def list_checkpoints(settings: Settings, job: str, as_json: bool, wide: bool, everything: bool) -> None:
    """List the checkpoints of a job that can be used, oldest first."""
    with access.store_with_job(settings, job) as store:
        # In this order: what is committed in between must not be missing from both.
        pending = [listing.pending_record(unit, job) | {"replicated": ""} for unit in access.pending(store, job)]
        found = store.checkpoints(job)
        replicas = store.replicas(each.id for each in found)
        committed = [listing.replicated(each, replicas.get(each.id)) for each in found]
    usable = [item for item in committed if item["status"] == "available"]
    records = committed + pending if everything else usable
    if as_json:
        click.echo(render.to_json(records))
    else:
        columns = listing.WIDE_COLUMNS if wide else listing.COLUMNS
        listing.show(listing.JOB_TITLE, columns, records, colour=settings.colour)
    _say_how_many_others(len(pending), len(committed) - len(usable), shown=everything)


def _say_how_many_others(pending: int, failed: int, *, shown: bool) -> None:
    if pending or failed:
        hint = "--wide shows which" if shown else "--all shows them"
        click.echo(f"{pending} pending, {failed} failed ({hint})", err=True)


@training.command("list", short_help="List the jobs.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, oldest first.")
@click.pass_obj
def list_jobs(settings: Settings, as_json: bool) -> None:
    """List the training jobs of the store, oldest first."""
    with access.existing_store(settings) as store:
        records = [] if store is None else _jobs(store)
    if as_json:
        click.echo(render.to_json(records))
        return
    columns = {"NAME": "name", "STATUS": "status", "CHECKPOINTS": "checkpoints", "SIZE": "sizeBytes"}
    listing.show("List of Training Jobs", columns | {"STARTED": "startedAt"}, records, colour=settings.colour)


def _jobs(store: Store) -> list[listing.Record]:
    tallies = store.tallies()
    records: list[listing.Record] = []
    for job in sorted(store.jobs(), key=lambda each: (each.created_ns, each.name)):
        runs = store.runs(job.name)
        records.append(
            {
                "name": job.name,
                "status": inspection.run_status(runs[-1], store.job_locked(job.name)) if runs else None,
                "checkpoints": tallies[job.name].available if job.name in tallies else 0,
                "sizeBytes": tallies[job.name].bytes if job.name in tallies else 0,
                "createdAt": formats.timestamp(job.created_ns),
                "startedAt": formats.timestamp(runs[-1].started_ns) if runs else None,
            }
        )
    return records


@training.command("inspect", short_help="Tell how a job stands.")
@click.argument("job")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@click.pass_obj
def inspect_job(settings: Settings, job: str, as_json: bool) -> None:
    """Tell how a job stands: its newest run, its checkpoints in numbers, all its runs."""
    with access.store_with_job(settings, job) as store:
        document = inspection.of_job(
            store.job(job),
            store.runs(job),
            store.tally(job),
            pending=len(access.pending(store, job)),
            locked=store.job_locked(job),
        )
    click.echo(render.to_json(document) if as_json else render.to_yaml(document))
