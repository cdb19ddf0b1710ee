"""`storage attach|detach|sync`, and the options of `mount` and `training run` that have to do with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fuse_ckpt.cli import access, formats
from fuse_ckpt.cli.nodes import AUTO, placed
from fuse_ckpt.cli.resumable import patience_option, resumable
from fuse_ckpt.cli.rules import Bytes, Number
from fuse_ckpt.cli.settings import Settings
from fuse_ckpt.errors import NotReached, UnknownConnection

if TYPE_CHECKING:
    from fuse_ckpt.store import Store

F = TypeVar("F", bound=Callable[..., Any])


class Nodes(Number):
    """A number of nodes, or `auto`: what the launcher says."""

    name = "nodes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "auto":
            return AUTO
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            self.fail(f"{text!r} is no number of nodes: write 1 or more, or auto.", param, ctx)
        return int(text)


def replicating_options(command: F) -> F:
    """`--replicate`, `--replicate-rate`, `--rank`, `--nodes`, `--attempt`."""
    options = (
        click.option(
            "--replicate", metavar="NAME",
            help="Copy each checkpoint to this connection (storage attach), in the background. Recorded with the job; "
            "none takes it back.",
        ),
        click.option(
            "--replicate-rate", type=Bytes(), metavar="BYTES", help="At most so many a second: 50MB. Default: all."
        ),
        click.option(
            "--nodes", "-n", type=Nodes(), metavar="N",
            help="With --replicate: N nodes write one checkpoint together, each a part of it; auto: as many as "
            "torchrun or Slurm say. Without: what each node saves is a checkpoint of its own.",
        ),
        click.option("--rank", type=click.IntRange(min=0), metavar="R", help="Which one; else the launcher says."),
        click.option("--attempt", metavar="A", help="What all nodes of this start have in common; else as above."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def node_options(environment: Mapping[str, str], chosen: dict[str, Any]) -> dict[str, Any]:
    """`chosen` with rank, nodes and attempt as they are. Errors: UsageError."""
    rank, nodes, attempt = placed(environment, chosen.get("rank"), chosen.get("nodes"), chosen.get("attempt"))
    return {**chosen, "rank": rank, "nodes": nodes, "attempt": attempt}


@click.command("attach", short_help="List what lies in one, and copy to it.")
@click.argument("name")
@click.option("--path", metavar="PATH", help="BUCKET/PREFIX, or a path below the directory; default: fuse-ckpt in it.")
@click.option("--exclusive", is_flag=True, help="This store alone writes there; for those that fail the probe.")
@patience_option
@click.pass_obj
def attach(settings: Settings, name: str, path: str | None, exclusive: bool, patience: float) -> None:
    """Share the object store NAME with other machines: what they have replicated is listed here, and can be resumed
    from; and `training run --replicate NAME` copies there.

    Several machines can share an object store that keeps a conditional create, which is tried out. One that does not
    is for one writer alone (--exclusive); others may read it.
    """
    from fuse_ckpt import session

    with _store(settings, name) as store:
        done = session.attach(store, name, settings.environment, path=path, exclusive=exclusive, patience=patience)
    alone = ", for this store's exclusive use" if done.exclusive else ""
    found = f"{done.new} checkpoints are new here" if done.new else "nothing there is new here"
    click.echo(formats.visible(f"Attached {name} at {done.place}{alone}: {found}"))


@click.command("detach", short_help="Do so no more.")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also where something waits to be copied: that is given up.")
@click.pass_obj
def detach(settings: Settings, name: str, force: bool) -> None:
    """Copy nothing more to NAME, and list no more what is there alone. What lies there stays there."""
    from fuse_ckpt import session

    with _store(settings, name) as store:
        gone, given_up = session.detach(store, name, force=force)
    left = f", {given_up} copies were given up" if given_up else ""
    click.echo(formats.visible(f"Detached {name}: {gone} checkpoints are not listed here any more{left}"))


@click.command("sync", short_help="Copy what waits, list what is new.")
@click.argument("name")
@click.option(
    "--job", "jobs", multiple=True, metavar="JOB", help="First have all its checkpoints wait; may be repeated."
)
@click.option("--replicate-rate", "rate", type=Bytes(), metavar="BYTES", help="At most so many a second: 50MB.")
@patience_option
@click.pass_obj
def sync(settings: Settings, name: str, jobs: tuple[str, ...], rate: int | None, patience: float) -> None:
    """Copy what waits for NAME, now and here, and list what other machines have put there.

    A mount does so by itself; this is for what its end, or its death, has left. --job is for what was saved before the
    job replicated; it needs a run or a mount with --replicate before.
    """
    from fuse_ckpt import session

    with _store(settings, name) as store, resumable(f"sync {formats.visible(name)}", settings) as progress:
        for job in jobs:
            store.queue_all(job)
        done = session.sync(store, name, settings.environment, rate=rate, patience=patience, progress=progress)
    said = f"Copied {done.copied} checkpoints ({formats.size(done.size)}) to {name}, {done.new} there are new here"
    click.echo(formats.visible(said))
    if done.left:
        first, how = next(iter(done.left.items()))
        raise NotReached(f"{len(done.left)} are not replicated, {first} for one: {how}.")


@contextmanager
def _store(settings: Settings, name: str) -> Iterator[Store]:
    with access.existing_store(settings) as store:
        if store is None:
            raise UnknownConnection(name)
        yield store
