"""`fuse-ckpt checkpoint show|diff`: what is in a checkpoint's files, and what two checkpoints differ by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, differences, formats, inventory, render
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from fuse_ckpt.contents import Problem
    from fuse_ckpt.model import Checkpoint

Document = dict[str, object]

_CORRUPT, _FAILED = 4, 1
_EXIT_CODES = (
    "Exit codes: 0 done, 1 a file asks for more memory or time than is given, 2 usage, 3 not found,"
    " 4 corrupt: a file is cut off, broken or missing."
)


@click.command("show", short_help="Show what is in one: tensors, types, sizes.", epilog=_EXIT_CODES)
@click.argument("reference", metavar="REF")
@click.option("--tensors", "each", is_flag=True, help="List every tensor: name, shape, type, bytes, file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(settings: Settings, reference: str, each: bool, as_json: bool) -> int:
    """Show what is in a checkpoint's files: formats, tensors, parameters, bytes by type.

    Reads files of torch.save (both formats), safetensors, torch.distributed.checkpoint and numpy; shards of an index
    count as one. Nothing is unpickled, and no tensor's data is read.
    """
    with access.store_with(settings, reference) as (store, [found]):
        from fuse_ckpt import contents

        found = access.brought(store, found, settings)
        seen = contents.look(store.manifest(found.id).entries, store.open_blob)
        total = contents.summed(seen.tensors)
    if as_json:
        click.echo(render.to_json({**heading(found), **inventory.document(seen, total, each=each)}))
    else:
        inventory.show(f"Contents of {described(found)}", seen, total, each=each, colour=settings.colour)
    return complain(seen.problems)


@click.command("diff", short_help="Show what two differ by.", epilog=_EXIT_CODES)
@click.argument("before", metavar="REF")
@click.argument("after", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: unchanged files and tensors too.")
@click.option("--exit-code", "as_code", is_flag=True, help="Exit with 1 where their files differ.")
@click.pass_obj
def diff(settings: Settings, before: str, after: str, as_json: bool, as_code: bool) -> int:
    """Show what two checkpoints differ by: files, tensors, and how far changed tensors are apart.

    MAX ABS is the largest difference of two elements, REL L2 is |after - before| / |before|; both over the elements
    that are finite in both. Files with equal digests are not read; memory does not depend on the sizes.
    """
    with access.store_with(settings, before, after) as (store, found):
        from fuse_ckpt import contents

        found = [access.brought(store, each, settings) for each in found]
        first, second = found[0], found[-1]
        entries = store.manifest(first.id).entries, store.manifest(second.id).entries
        with render.progress_bar("diff", colour=settings.colour) as progress:
            compared = contents.compare(*entries, store.open_blob, progress)
    if as_json:
        click.echo(render.to_json(differences.document(heading(first), heading(second), compared)))
    else:
        title = f"Differences of {described(first)} and {described(second)}"
        differences.show(title, compared, colour=settings.colour)
    code = complain(compared.problems)
    return code or (1 if as_code and not compared.identical else 0)


def heading(found: Checkpoint) -> Document:
    """What says in JSON which checkpoint is meant."""
    return {"id": found.id, "job": found.job, "name": found.name, "version": found.ordinal}


def described(found: Checkpoint) -> str:
    return formats.visible(f"{found.id} ({found.place})")


def complain(problems: Sequence[Problem]) -> int:
    """A line on standard error for each file that could not be looked into; the exit code that they make."""
    for problem in problems:
        hint = ' ("checkpoint verify" tells whether it is as it was saved)' if problem.corrupt else ""
        click.echo(formats.visible(f"{problem}{hint}"), err=True)
    if any(problem.corrupt for problem in problems):
        return _CORRUPT
    return _FAILED if problems else 0
