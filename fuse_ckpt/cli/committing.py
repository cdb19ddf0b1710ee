"""`fuse-ckpt checkpoint commit` and `promote`: a person decides what is finished, and what is good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, formats, listing, render
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint

_BUSY = 5


@click.command("commit", short_help="Take what is pending as finished.")
@click.argument("what", metavar="JOB[/NAME]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of what was committed, oldest first.")
@click.pass_obj
def commit(settings: Settings, what: str, as_json: bool) -> int:
    """Commit what a job has written and not committed yet, without waiting for its quiet period.

    Everything that is pending, or the unit of that NAME alone. Returns when it is committed and prints its ids. What is
    not whole becomes a failed checkpoint; what a program still writes is left alone. A job that is not mounted is
    committed as its next mount would.

    Exit code 1 where a checkpoint is not whole or cannot be committed, 5 where one is still being written.
    """
    job, slash, name = what.partition("/")
    with access.store_with_job(settings, job):
        pass  # a process has the index open once only, and the session opens its own
    import logging

    from fuse_ckpt import session

    logging.getLogger("fuse_ckpt").addHandler(logging.NullHandler())  # what goes wrong is told below
    answer = session.commit(settings.store, job, name if slash else None)
    with access.store_with_job(settings, job) as store:
        done = [store.checkpoint(one) for one in dict.fromkeys(answer.committed)]
    if as_json:
        click.echo(render.to_json([listing.record(each) for each in done]))
    else:
        for each in done:
            click.echo(_committed(each))
    for unit, why in answer.left.items():
        click.echo(formats.visible(f"{job}/{unit} is not committed: {why or 'it waits for its turn'}"), err=True)
    if not done and not answer.left:
        click.echo(formats.visible(f"Nothing of {what} is pending."), err=as_json)
    if answer.left:
        return _BUSY if set(answer.left) == set(answer.held) else 1
    return int(any(each.state == "failed" for each in done))


def _committed(each: Checkpoint) -> str:
    said = f"Committed {each.id} ({each.place})"
    return formats.visible(f"{said}, failed: {each.failure}" if each.state == "failed" else said)


@click.command("promote", short_help="Overrule that one is failed.")
@click.argument("reference", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print the checkpoint as JSON.")
@click.pass_obj
def promote(settings: Settings, reference: str, as_json: bool) -> None:
    """Take a failed checkpoint as a good one: it is available from now on, and can be `latest`.

    For one whose training ended before its last file, and which you have looked at. Why it failed stays in `inspect`.
    """
    with access.store_with(settings, reference) as (store, [found]):
        after = store.promote(found.id)
    if as_json:
        click.echo(render.to_json(listing.record(after)))
    elif found.promoted:
        click.echo(formats.visible(f"Checkpoint {after.id} is promoted already."))
    else:
        click.echo(formats.visible(f"Promoted {after.id} ({after.place})"))
