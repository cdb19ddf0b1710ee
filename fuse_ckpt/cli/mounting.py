"""`mount`, `umount` and `browse`: the filesystem without a training command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from fuse_ckpt.cli import access, formats
from fuse_ckpt.cli.grouping import grouping_options
from fuse_ckpt.cli.replicating import node_options, replicating_options
from fuse_ckpt.cli.rules import GivenPath, keeping_options
from fuse_ckpt.cli.settings import INPUT_VARIABLE, OUTPUT_VARIABLE, Settings, absolute
from fuse_ckpt.errors import UnknownCheckpoint

data_path_option = click.option(
    "--data-path",
    type=click.Choice(["auto", "passthrough", "daemon"]),
    default="auto",
    show_default=True,
    envvar="FUSE_CKPT_DATA_PATH",
    help="Who moves the data: the kernel, if it can; or one of them alone.",
)
durability_option = click.option(
    "--durability",
    type=click.Choice(["commit", "close"]),
    default="commit",
    show_default=True,
    help="From when on a save survives a power cut: once it is listed, or once its close has returned.",
)
_DIRECTORY = GivenPath(readable=False)  # a dead mount is not, and is to be unmounted


@click.command("mount", short_help="Mount a job's output directory.")
@click.argument("job")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("--input", "reference", metavar="REF", help="A checkpoint to resume from, as the input directory.")
@click.option("--foreground", is_flag=True, help="Stay until the directory is unmounted, instead of leaving a daemon.")
@click.option(
    "--show-checkpoints", is_flag=True, help="List .checkpoints in the mount's root; programs may trip over it."
)
@click.option("--allow-other", is_flag=True, help="Let other users in (user_allow_other in /etc/fuse.conf).")
@grouping_options
@data_path_option
@durability_option
@keeping_options
@replicating_options
@click.pass_obj
def mount(
    settings: Settings,
    /,
    job: str,
    directory: Path,
    reference: str | None,
    foreground: bool,
    **chosen: Any,
) -> None:
    """Mount a job's output directory at DIR and print what a program needs to know of it."""
    from fuse_ckpt import session
    from fuse_ckpt.model import check_job_name

    check_job_name(job)
    parent = None
    if reference is not None:
        with access.existing_store(settings) as store:
            if store is None:
                raise UnknownCheckpoint(reference)
            found = session.find_input(store, reference, lambda line: click.echo(formats.visible(line), err=True))
            parent = found.id
            if found.state == "failed":
                click.echo(f"{found.id} is a failed checkpoint: {formats.visible(found.failure or '')}", err=True)
    options = session.MountOptions(
        store=settings.store,
        job=job,
        mountpoint=absolute(directory),
        parent=parent,
        verbose=settings.verbose,
        **node_options(settings.environment, chosen),
    )

    def ready(mounted: session.Mounted) -> None:
        click.echo(exports(mounted.mountpoint, parent))
        if settings.verbose:
            click.echo(f"data path: {mounted.data_path} ({mounted.reason})", err=True)

    session.mount(options, foreground=foreground, ready=ready)


def exports(mountpoint: Path, parent: str | None) -> str:
    """Lines that a shell can evaluate: `eval "$(fuse-ckpt mount …)"`."""
    views = mountpoint / ".checkpoints"
    given = (
        f"export {INPUT_VARIABLE}={_shell(views / 'by-id' / parent)}"
        if parent
        else (f"# export {INPUT_VARIABLE}={_shell(views / 'latest')}   (to resume from the newest one)")
    )
    return "\n".join(
        [
            f"export {OUTPUT_VARIABLE}={_shell(mountpoint)}",
            given,
            f"# earlier checkpoints, read-only: {formats.visible(str(views))}/by-id/ID, by-name/NAME@N, latest",
        ]
    )


def _shell(path: Path) -> str:
    text = str(path)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + formats.visible(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


@click.command("umount", short_help="Unmount it again.")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
def umount(directory: Path) -> None:
    """Unmount DIR: returns when what was pending is committed and the daemon has gone."""
    from fuse_ckpt import session

    session.umount(absolute(directory))


@click.command("browse", short_help="Mount the whole store, read-only.")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("--foreground", is_flag=True, help="Stay until the directory is unmounted, instead of leaving a daemon.")
@click.pass_obj
def browse(settings: Settings, directory: Path, foreground: bool) -> None:
    """Mount the checkpoints of the whole store at DIR, by job, read-only."""
    from fuse_ckpt import session

    target = absolute(directory)
    said = f"All checkpoints, by job: {formats.visible(str(target))} (fuse-ckpt umount ends it)"
    session.browse(settings.store, target, foreground=foreground, ready=lambda mounted: click.echo(said))
