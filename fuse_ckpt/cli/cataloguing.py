"""`catalog sync`: the checkpoints of an object store as a Delta table, for DuckDB, Polars, pandas or Spark."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, formats
from fuse_ckpt.cli.resumable import patience_option
from fuse_ckpt.cli.settings import Settings
from fuse_ckpt.errors import UnknownConnection, UsageError

if TYPE_CHECKING:
    from fuse_ckpt.catalog import Brought
    from fuse_ckpt.store import Store

_NONE = "No object store is attached: fuse-ckpt storage attach NAME first."


@click.group("catalog", short_help="A table of what object stores hold.")
def catalog() -> None:
    """The checkpoints of an attached object store as a Delta table, one row each, for queries in SQL.

    It needs the extra: pip install 'fuse-ckpt[catalog]'.
    """


@catalog.command("sync", short_help="Bring it up to date.")
@click.option("--storage-provider", "name", metavar="NAME", help="The connection; not needed where one is attached.")
@click.option("--job", "jobs", multiple=True, metavar="JOB", help="Its rows alone; may be repeated.")
@click.option("--rebuild", is_flag=True, help="Make it anew, whatever has become of it.")
@patience_option
@click.pass_obj
def sync(settings: Settings, name: str | None, jobs: tuple[str, ...], rebuild: bool, patience: float) -> None:
    """Bring the table to exactly what lies in the object store: one row for each checkpoint that is whole.

    The first time makes it, below the path of `storage attach`, in `catalog/`; from then on every run and mount that
    copies there adds its rows by itself, if it has the extra. What was deleted goes with the next sync.
    """
    if rebuild and jobs:
        raise UsageError("--rebuild is for the whole table: leave out --job.")
    from fuse_ckpt import session

    with access.existing_store(settings) as store:
        if store is None:
            raise UnknownConnection(name) if name else UsageError(_NONE)
        name = name or _only_one(store)
        done = session.sync_catalog(store, name, settings.environment, jobs=jobs, rebuild=rebuild, patience=patience)
    for problem in done.problems:
        click.echo(formats.visible(f"Not in it: {problem}"), err=True)
    click.echo(formats.visible(f"{done.uri}: {_words(done)}"))


def _only_one(store: Store) -> str:
    attached = [one.name for one in store.connections() if one.attached is not None]
    if not attached:
        raise UsageError(_NONE)
    if len(attached) > 1:
        raise UsageError(f"Several object stores are attached ({', '.join(attached)}): say --storage-provider NAME.")
    return attached[0]


def _words(done: Brought) -> str:
    rows = "1 row" if done.rows == 1 else f"{done.rows} rows"
    if done.made:
        return f"made, {rows}"
    if not done.changed:
        return f"nothing has changed, {rows}"
    return f"{done.added} added, {done.replaced} replaced, {done.removed} removed, {rows} now"
