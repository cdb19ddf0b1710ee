"""`fuse-ckpt training delete|fetch`: what is left of a job that has ended."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, formats
from fuse_ckpt.cli.rules import GivenPath
from fuse_ckpt.cli.settings import Settings, absolute

if TYPE_CHECKING:
    from fuse_ckpt.store import Store

_SHOWN = 10  # loose files that the question names


@click.command("delete", short_help="Delete a job and its checkpoints.")
@click.argument("job")
@click.option("--yes", is_flag=True, help="Do not ask. Needed where standard input is no terminal.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted and what that frees, and delete nothing.")
@click.pass_obj
def delete_job(settings: Settings, job: str, yes: bool, dry_run: bool) -> None:
    """Delete a job: its checkpoints go to the trash, all of them or, where one is in use or pinned, none; then its
    working tree goes, with what is in no checkpoint, and the record of its runs.

    Refused while the job is mounted. `checkpoint restore` takes single checkpoints back, and the job with them.
    """
    with access.store_with_job(settings, job) as store:
        from fuse_ckpt.store import Plan

        lines, at_once = _foretell(store, job)
        if not (yes or dry_run):
            _confirm(job, lines)
        if not dry_run:
            store.delete_job(job)
        if at_once and not dry_run:
            store.tidy(Plan(expired=tuple(store.trash(job))), f"Process {os.getpid()} (training delete)")
    click.echo(f"{'Would delete' if dry_run else 'Deleted'} job {job}")
    for line in lines:
        click.echo(line)


def _foretell(store: Store, job: str) -> tuple[list[str], bool]:
    """What goes with the job, a line each; and whether its trash is emptied at once."""
    checkpoints = store.checkpoints(job)
    space = store.space([each.id for each in checkpoints])
    files = store.work_files(job)
    loose = [each for each in files if not each.kept]
    lines = [
        f"  {len(checkpoints)} checkpoints, to the trash: {formats.size(space.free + space.held)} come free when it is "
        f"emptied (checkpoint gc), {formats.size(space.shared)} stay with other jobs' checkpoints",
        f"  {len(files)} files of its working tree: {formats.size(sum(each.disk for each in files))} come free now",
    ]
    if loose:
        lines.append(f"  {len(loose)} of these are in no checkpoint (training fetch copies them):")
        lines += [f"    {formats.visible(each.path)} ({formats.size(each.size)})" for each in loose[:_SHOWN]]
        lines += [f"    and {len(loose) - _SHOWN} more"] if len(loose) > _SHOWN else []
    return lines, store.job(job).trash_ttl_ns == 0


def _confirm(job: str, lines: list[str]) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on: --yes deletes without asking.")
    for line in lines:
        click.echo(line, err=True)
    click.confirm(f"Delete job {job}?", abort=True, err=True)


@click.command("fetch", short_help="Copy a job's logs out of the store.")
@click.argument("job")
@click.option("--destination", type=GivenPath(), metavar="DIR", help="Default: ./JOB.")
@click.pass_obj
def fetch_job(settings: Settings, job: str, destination: Path | None) -> None:
    """Copy the files of a job's output directory that are in no checkpoint: logs, reports, what was never finished.

    `checkpoint fetch` copies checkpoints.
    """
    with access.store_with_job(settings, job) as store:
        from fuse_ckpt import transfer

        target = absolute(destination if destination is not None else Path(job))
        done = transfer.fetch_loose(store, job, target)
    files = "1 file" if done.files == 1 else f"{done.files} files"
    click.echo(f"Fetched {files} ({formats.size(done.size)}) into {formats.visible(str(done.path))}")
