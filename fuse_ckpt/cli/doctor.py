"""`doctor`: what this machine lacks, and how to get it."""

from __future__ import annotations

import click

from fuse_ckpt.cli import formats
from fuse_ckpt.cli.indexing import examine_store
from fuse_ckpt.cli.settings import Settings

_MARKS = {True: "ok     ", None: "warning", False: "missing"}


@click.command("doctor", short_help="Say what this machine lacks.")
@click.option("--store", "the_store", is_flag=True, help="Examine the store instead: exit 4 where something is amiss.")
@click.option("--repair", is_flag=True, help="With --store: mend what can be mended.")
@click.pass_obj
def doctor(settings: Settings, the_store: bool, repair: bool) -> int:
    """Check whether this machine can mount and where the store lies; exits with 1 where something is missing.

    With --store: compare the index with the blobs, the manifests and the working trees.
    """
    if repair and not the_store:
        raise click.UsageError("--repair mends the store: doctor --store --repair.")
    if the_store:
        return examine_store(settings, repair=repair)
    from fuse_ckpt.session import probe

    findings = probe(settings.store)
    for finding in findings:
        click.echo(f"{_MARKS[finding.ok]}  {formats.visible(finding.what)}")
        if finding.remedy and finding.ok is not True:
            click.echo(f"{'':7}  → {formats.visible(finding.remedy)}")
    return 1 if any(finding.ok is False for finding in findings) else 0
