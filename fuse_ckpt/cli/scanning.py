"""`fuse-ckpt checkpoint scan`: would loading a checkpoint run anything?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, render
from fuse_ckpt.cli.contents import described, heading
from fuse_ckpt.cli.inventory import table
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from fuse_ckpt.contents import ScannedFile
    from fuse_ckpt.model import Manifest, Scan
    from fuse_ckpt.store import Store

Document = dict[str, object]

SHOWN = 8  # reasons of a file in the table; JSON has all

_EXIT_CODES = (
    "Exit codes: 0 safe, 1 not safe or not known (or failed), 2 usage, 3 not found, 4 corrupt: a file is missing."
)


@click.command("scan", short_help="Say whether loading it would run anything.", epilog=_EXIT_CODES)
@click.argument("reference", metavar="REF")
@click.option(
    "--allow", multiple=True, metavar="GLOB", help="Take these names for safe too, as numpy.*; may be given again."
)
@click.option("--again", is_flag=True, help="Scan anew what was scanned before.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def scan(settings: Settings, reference: str, allow: tuple[str, ...], again: bool, as_json: bool) -> int:
    """Say what the pickles in a checkpoint would import and call when they are loaded. None of them is.

    A file is safe if all that it names is what torch.load(weights_only=True) of torch 2.13 accepts, or, in a
    .metadata, what torch.distributed.checkpoint writes there. Looked into are the files of torch.save, pickles of any
    name and protocol, the shards that a .metadata names, numpy's arrays of objects, and files of these in zip files or
    compressed. What cannot be read to its end is never safe. Source code (.py) is not looked into, and neither is
    what Keras keeps in .h5 files. What was found is kept for each file's bytes.
    """
    with access.store_with(settings, reference) as (store, [found]):
        from fuse_ckpt import contents

        found = access.brought(store, found, settings)
        entries = store.manifest(found.id).entries
        kept = {} if again else store.scans(entry.digest for entry in entries if entry.digest)
        scanned = list(contents.scan(entries, store.open_blob, kept))
        with suppress(OSError):  # a full disk keeps nothing, and the next scan takes as long as this one
            store.keep_scans({one.digest: one.scan for one in scanned if one.fresh})
    files = [one for one in scanned if one.scan.pickles or not one.scan.safe]
    safe = all(_verdict(one.scan, allow) == "safe" for one in files)
    if as_json:
        said = {
            "safe": safe,
            "files": [_file(one, allow) for one in files],
            "withoutPickles": len(scanned) - len(files),
        }
        click.echo(render.to_json({**heading(found), **said}))
    else:
        _show(f"Scan of {described(found)}", files, allow, len(scanned) - len(files), colour=settings.colour)
    return 0 if safe else 1


def kept(store: Store, manifest: Manifest) -> Document | None:
    """What earlier scans have found of a checkpoint; None where one of its files was not scanned yet."""
    from fuse_ckpt.model import SCAN_RULES

    digests = {entry.digest for entry in manifest.entries if entry.digest}
    scans = store.scans(digests)
    if not digests or scans.keys() != digests or any(one.rules != SCAN_RULES for one in scans.values()):
        return None
    globals_ = sorted({name for one in scans.values() for name in one.others})
    return {"safe": all(one.safe for one in scans.values()), "globals": globals_}


def _verdict(found: Scan, allow: Sequence[str]) -> str:
    if found.oddities or _others(found, allow):
        return "not safe"
    return "not known" if found.doubts else "safe"


def _others(found: Scan, allow: Sequence[str]) -> list[str]:
    return [name for name in found.others if not any(fnmatchcase(name, glob) for glob in allow)]


def _file(one: ScannedFile, allow: Sequence[str]) -> Document:
    found = one.scan
    return {
        "path": one.path,
        "digest": one.digest,
        "verdict": _verdict(found, allow),
        "pickles": found.pickles,
        "globals": [{"name": name, "called": name in found.called} for name in _others(found, allow)],
        "allowed": [*found.allowed, *(name for name in found.others if name not in _others(found, allow))],
        "oddities": list(found.oddities),
        "doubts": list(found.doubts),
    }


def _show(title: str, files: Sequence[ScannedFile], allow: Sequence[str], without: int, *, colour: bool) -> None:
    if not files:
        click.echo(f"{title}\nsafe: none of its files holds a pickle")
        return
    rows = [[one.path, _verdict(one.scan, allow), one.scan.pickles, _reasons(one.scan, allow)] for one in files]
    table(title, ("FILE", "VERDICT", "PICKLES", "WHY"), rows, colour=colour)
    if without:
        click.echo(f"{without} more without pickles")


def _reasons(found: Scan, allow: Sequence[str]) -> str:
    names = _others(found, allow)
    said = [f"{'calls' if name in found.called else 'imports'} {name}" for name in names]
    said += [f"it {what}" for what in (*found.oddities, *found.doubts)]
    more = [f"and {len(said) - SHOWN} more (--json has all)"] if len(said) > SHOWN else []
    return "; ".join([*said[:SHOWN], *more])
