"""`fuse-ckpt checkpoint delete|restore|tag|untag|pin|unpin`: what people say of checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, formats
from fuse_ckpt.cli.settings import Settings
from fuse_ckpt.errors import UnknownCheckpoint

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Space


@click.command("delete", short_help="Delete some of them.")
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask. Needed where standard input is no terminal.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted and what that frees, and delete nothing.")
@click.pass_obj
def delete(settings: Settings, references: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    """Delete checkpoints: all of them, or none where one is unknown, in use, or pinned.

    They go to the trash, from which `checkpoint restore` takes them back until `checkpoint gc`, or a mount of their
    job, empties it: after 7 days, or what `--trash-ttl` said.
    """
    with access.store_with(settings, *references) as (store, found):
        space = store.space([each.id for each in found])
        if not (yes or dry_run):
            _confirm(found, space)
        if not dry_run:
            store.delete([each.id for each in found])
    for each in found:
        click.echo(f"{'Would delete' if dry_run else 'Deleted'} {described(each)}")
    click.echo(freed(space))


def freed(space: Space) -> str:
    """What becomes of the bytes, once they are collected."""
    said = [f"{formats.size(space.free)} come free when the trash is emptied (checkpoint gc)"]
    if space.shared:
        said.append(f"{formats.size(space.shared)} stay with other checkpoints")
    if space.held:
        said.append(f"{formats.size(space.held)} stay in working trees (checkpoint gc --work)")
    return ", ".join(said) + "."


def _confirm(found: Sequence[Checkpoint], space: Space) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("There is no terminal to ask on: --yes deletes without asking.")
    for each in found:
        tags = f", tagged {', '.join(each.tags)}" if each.tags else ""
        click.echo(described(each) + formats.visible(tags), err=True)
    click.echo(freed(space), err=True)
    question = "Delete it?" if len(found) == 1 else f"Delete these {len(found)}?"
    click.confirm(question, abort=True, err=True)


def described(each: Checkpoint) -> str:
    """A checkpoint in one line: its id, and by which name it is known."""
    return formats.visible(f"{each.id} ({each.place})")


@click.command("restore", short_help="Undo a delete.")
@click.argument("reference", metavar="REF")
@click.pass_obj
def restore(settings: Settings, reference: str) -> None:
    """Take a deleted checkpoint back from the trash, as it was.

    REF is its id, a part of it (4 characters or more), or JOB/NAME@N; `checkpoint list --status deleted` lists them.
    """
    with access.existing_store(settings) as store:
        if store is None:
            raise UnknownCheckpoint(reference)
        try:
            found = store.deleted(reference)
        except UnknownCheckpoint:
            there = store.resolve(reference)
            click.echo(f"{described(there)} is not deleted.")
            return
        restored = store.restore(found.id)
    click.echo(f"Restored {described(restored)}")
    lost = [tag for tag in found.tags if tag not in restored.tags]
    if lost:
        click.echo(formats.visible(f"Another checkpoint has its tag {', '.join(lost)} by now."), err=True)


@click.command("tag", short_help="Give one a name of its own.")
@click.argument("reference", metavar="REF")
@click.argument("tag")
@click.option("--force", is_flag=True, help="Take the tag from the checkpoint that has it.")
@click.pass_obj
def add_tag(settings: Settings, reference: str, tag: str, force: bool) -> None:
    """Give a checkpoint a TAG, which is a REF from then on. One checkpoint has it; retention keeps what is tagged."""
    with access.store_with(settings, reference) as (store, [found]):
        tagged = store.tag(found.id, tag, force=force)
    click.echo(f"Tagged {described(tagged)}: {formats.visible(', '.join(tagged.tags))}")


@click.command("untag", short_help="Take such a name away.")
@click.argument("reference", metavar="REF")
@click.argument("tag")
@click.pass_obj
def remove_tag(settings: Settings, reference: str, tag: str) -> None:
    """Take a TAG away from a checkpoint."""
    with access.store_with(settings, reference) as (store, [found]):
        store.untag(found.id, tag)
    had = "Untagged" if tag in found.tags else f"Had no tag {tag}:"
    click.echo(f"{formats.visible(had)} {described(found)}")


@click.command("pin", short_help="Keep one from being deleted.")
@click.argument("reference", metavar="REF")
@click.pass_obj
def pin(settings: Settings, reference: str) -> None:
    """Keep a checkpoint from being deleted, by a person or a policy, until it is unpinned."""
    with access.store_with(settings, reference) as (store, [found]):
        store.pin(found.id)
    click.echo(f"Pinned {described(found)}")


@click.command("unpin", short_help="Let it be deleted again.")
@click.argument("reference", metavar="REF")
@click.pass_obj
def unpin(settings: Settings, reference: str) -> None:
    """Let a pinned checkpoint be deleted again."""
    with access.store_with(settings, reference) as (store, [found]):
        store.pin(found.id, False)
    click.echo(f"Unpinned {described(found)}")


COMMANDS = (delete, restore, add_tag, remove_tag, pin, unpin)
