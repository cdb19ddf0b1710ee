"""`doctor`: what this machine lacks, and how to get it."""

from __future__ import annotations

import click

from fuse_ckpt.cli import formats
from fuse_ckpt.cli.settings import Settings

_MARKS = {True: "ok     ", None: "warning", False: "missing"}


@click.command("doctor", short_help="Say what this machine lacks.")
@click.pass_obj
def doctor(settings: Settings) -> int:
    """Check whether this machine can mount and where the store lies; exits with 1 where something is missing."""
    from fuse_ckpt.session import probe

    findings = probe(settings.store)
    for finding in findings:
        click.echo(f"{_MARKS[finding.ok]}  {formats.visible(finding.what)}")
        if finding.remedy and finding.ok is not True:
            click.echo(f"{'':7}  → {formats.visible(finding.remedy)}")
    return 1 if any(finding.ok is False for finding in findings) else 0
