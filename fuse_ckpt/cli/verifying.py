"""`fuse-ckpt checkpoint verify`: are the stored bytes still the ones that were stored?"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, formats, render
from fuse_ckpt.cli.resumable import SHORT
from fuse_ckpt.cli.settings import Settings
from fuse_ckpt.errors import Corrupt, UnknownCheckpoint
from fuse_ckpt.model import State

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Damage, Findings, Store

Document = dict[str, object]

SHARED_SHOWN = 5

_EXIT_CODES = "Exit codes: 0 all is well, 1 failed, 2 usage, 3 not found, 4 corrupt: something is damaged or missing."


@click.command("verify", short_help="Read some again and compare.", epilog=_EXIT_CODES)
@click.argument("references", metavar="[REF...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All checkpoints, and every record of the index.")
@click.option("--from-disk", is_flag=True, help="Have the disk itself read, not what the kernel still holds in memory.")
@click.option("--dry-run", is_flag=True, help="Only say what is damaged: mark nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def verify(
    settings: Settings, references: tuple[str, ...], everything: bool, from_disk: bool, dry_run: bool, as_json: bool
) -> None:
    """Read the files of checkpoints again and compare them with their digests, on all cores.

    Prints a line for each file that is not as it was saved, and which other checkpoints hold the same bytes. A
    checkpoint with damage is marked failed, and JOB:latest is the newest whole one from then on; one that an earlier
    verify has marked, and that a later save of the same bytes has mended, is available again.
    """
    if everything == bool(references):
        raise click.UsageError("Name checkpoints, or give --all.")
    with access.existing_store(settings) as store:
        if store is None:
            raise UnknownCheckpoint(references[0] if references else "--all")
        ids = None if everything else [store.resolve(reference).id for reference in references]
        with render.progress_bar("verify", colour=settings.colour) as progress:
            found = store.examine(ids, from_disk=from_disk, progress=progress)
        failed, whole = ([], []) if dry_run else _mark(store, found)
        away = _away(store, found)
    if as_json:
        click.echo(render.to_json(_document(found, failed, whole) | {"notHere": away}))
    else:
        _say(found, whole)
    if away:
        names = away[0][-SHORT:] + ", …" * (len(away) > 1)
        click.echo(
            f"{_count(len(away), 'checkpoint')} ({names}) with files in an object store alone, which were not read: "
            "checkpoint fetch compares them as it brings them.",
            err=True,
        )
    if found.damage or found.records:
        raise Corrupt(_verdict(found, failed))


def _away(store: Store, found: Findings) -> list[str]:
    """The ids of those whose bytes are not all here: of these, what is here was looked at."""
    remote = {one.id for one in store.checkpoints(states=frozenset(State)) if one.remote is not None}
    return [one for one in found.checkpoints if one in remote]


def _mark(store: Store, found: Findings) -> tuple[list[str], list[str]]:
    """Mark what is damaged, and what is whole again; the ids of both."""
    damage: dict[str, list[Damage]] = {}
    for one in found.damage:
        damage.setdefault(one.checkpoint, []).append(one)
    changed: dict[str, Checkpoint] = {}
    for checkpoint in found.checkpoints:
        with suppress(UnknownCheckpoint):  # deleted meanwhile
            before = store.checkpoint(checkpoint)
            wrong = damage.get(checkpoint)
            after = store.mark_damaged(checkpoint, wrong) if wrong else store.mark_whole(checkpoint)
            if after.state != before.state:
                changed[checkpoint] = after
    return [one for one in changed if one in damage], [one for one in changed if one not in damage]


def _document(found: Findings, failed: list[str], whole: list[str]) -> Document:
    return {
        "checkpoints": len(found.checkpoints),
        "files": found.files,
        "sizeBytes": found.size,
        "damage": [
            {
                "checkpoint": one.checkpoint,
                "name": one.name,
                "path": one.path,
                "digest": one.digest,
                "problem": one.what,
                "sharedWith": list(one.shared),
            }
            for one in found.damage
        ],
        "records": list(found.records),
        "failed": failed,
        "availableAgain": whole,
    }


def _say(found: Findings, whole: list[str]) -> None:
    for problem in (*found.records, *map(_line, found.damage)):
        click.echo(formats.visible(problem))
    for checkpoint in whole:
        click.echo(f"{checkpoint} is whole again, and available.")
    if not found.damage and not found.records:
        read = f"{_count(len(found.checkpoints), 'checkpoint')}, {_count(found.files, 'blob')}"
        click.echo(f"Verified {read}, {formats.size(found.size)}: all is as it was saved.")


def _line(one: Damage) -> str:
    if not one.shared:
        return str(one)
    shown = ", ".join(one.shared[:SHARED_SHOWN])
    more = f" and {len(one.shared) - SHARED_SHOWN} more" if len(one.shared) > SHARED_SHOWN else ""
    return f"{one} The same bytes are in {shown}{more}."


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _verdict(found: Findings, failed: list[str]) -> str:
    damaged = len({one.checkpoint for one in found.damage})
    if not damaged:
        return f"The index has {_count(len(found.records), 'damaged record')}: restore the store from a copy."
    marked = f", {len(failed)} of them newly marked failed" if failed else ""
    return (
        f"{_count(damaged, 'checkpoint')} of {len(found.checkpoints)} damaged{marked}: save the same bytes again or"
        " restore the blobs from a copy, then verify again; checkpoint fetch --include takes out what is right."
    )
