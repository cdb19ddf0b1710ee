"""`checkpoint lineage`: which run came from which checkpoint, from the roots to the leaves."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, formats, inspection, listing, render
from fuse_ckpt.cli.ancestry import Ancestry, Branch
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint

_SHORT = 8  # characters of an id's end
_FEW = 5  # checkpoints of a run that are all shown
_DEEPEST = 20  # branches inside branches that are still drawn further in
_SHOWN_REVISION = 12  # characters


@click.command("lineage", short_help="Show what one came from, and led to.")
@click.argument("reference", metavar="REF")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the runs, parents first, and what each saved.")
@click.option("--all", "everything", is_flag=True, help="Show every checkpoint of every run.")
@click.pass_obj
def lineage(settings: Settings, reference: str, as_json: bool, everything: bool) -> None:
    """Show the tree of resumes that a checkpoint belongs to: each run, what it was resumed from, and what it saved.

    Of a run's checkpoints those are shown that were resumed from, the first, the last, and REF, which is marked.
    """
    with access.store_with(settings, reference) as (store, [found]):
        ancestry = Ancestry(store)
        roots = ancestry.tree(ancestry.branch_of(found))
        if as_json:
            text = render.to_json(document(ancestry, found, roots))
        else:
            lines = Drawing(ancestry, found, everything).lines(roots)
            text = "\n".join(_fitted(line, settings.colour) for line in lines)
    click.echo(text)


def _fitted(line: str, colour: bool) -> str:
    """Cut to the terminal's width; the checkpoint that was asked for stands out."""
    if not sys.stdout.isatty():
        return line
    cut = render.cut(line, shutil.get_terminal_size().columns)
    return click.style(cut, bold=True) if colour and line.endswith(_MARK) else cut


_MARK = " ◀"


def _in_order(roots: Sequence[Branch]) -> Iterator[Branch]:
    """Every branch after the one that it came from."""
    rest = list(reversed(roots))
    while rest:
        branch = rest.pop()
        yield branch
        rest += reversed(branch.children)


def document(ancestry: Ancestry, found: Checkpoint, roots: Sequence[Branch]) -> inspection.Document:
    """Flat, since a run that is resumed every hour for months makes a tree that is deeper than JSON readers go."""
    return {"id": found.id, "runs": [_run(ancestry, branch) for branch in _in_order(roots)]}


def _run(ancestry: Ancestry, branch: Branch) -> inspection.Document:
    parent = ancestry.find(branch.parent) if branch.parent else None
    known = inspection.of_run(branch.run, ancestry.is_served(branch)) if branch.run else {"parentID": branch.parent}
    return {
        "id": branch.run.id if branch.run else None,
        "job": branch.job,
        **known,
        "parentStatus": None if branch.parent is None else "deleted" if parent is None else str(parent.state),
        "checkpoints": [listing.record(one) for one in branch.saved],
    }


class Drawing:
    """The tree as lines. A run goes on below the one that it was resumed from; where there are several, all but the
    last are drawn further in, below the checkpoint that they came from."""

    def __init__(self, ancestry: Ancestry, found: Checkpoint, everything: bool) -> None:
        self._ancestry = ancestry
        self._found = found
        self._everything = everything

    def lines(self, roots: Sequence[Branch]) -> Iterator[str]:
        if roots[0].parent is not None and self._ancestry.find(roots[0].parent) is None:
            yield f"○ {roots[0].parent} (deleted)"
        rest: list[tuple[Branch, str] | str] = [(root, "") for root in reversed(roots)]
        while rest:
            item = rest.pop()
            if isinstance(item, str):
                yield item
                continue
            branch, lead = item
            rest += reversed(list(self._block(branch, lead)))

    def _block(self, branch: Branch, lead: str) -> Iterator[tuple[Branch, str] | str]:
        """The lines of a branch, and the branches that are to be drawn between and after them."""
        yield f"{lead}● {self._title(branch)}"
        yield f"{lead}│ {self._facts(branch)}"
        aside, onward = branch.children[:-1], next(iter(branch.children[-1:]), None)
        shown = list(self._shown(branch))
        for number, item in enumerate(shown):
            last = number == len(shown) - 1 and onward is None
            corner = "└─" if last and not any(_came_from(child, item) for child in aside) else "├─"
            yield f"{lead}{corner} {self._checkpoint(item)}"
            inner = f"{lead}│  " if len(lead) < 3 * _DEEPEST else lead
            yield from ((child, inner) for child in aside if _came_from(child, item))
        if onward is not None:
            yield (onward, lead)

    def _shown(self, branch: Branch) -> Iterator[Checkpoint | int]:
        """The checkpoints that are shown, and how many are left out between them."""
        resumed = {child.parent for child in branch.children} | {self._found.id}
        ends = {id(one) for one in (*branch.saved[:1], *branch.saved[-1:])}
        left_out = 0
        for one in branch.saved:
            if self._everything or len(branch.saved) <= _FEW or one.id in resumed or id(one) in ends:
                if left_out:
                    yield left_out
                left_out = 0
                yield one
            else:
                left_out += 1

    def _title(self, branch: Branch) -> str:
        if not branch.job:
            return "(pushed)"
        command = shlex.join(branch.run.command) if branch.run else "(mounted by hand)"
        return formats.visible(f"{branch.job}: {command}")

    def _facts(self, branch: Branch) -> str:
        run = branch.run
        facts = [] if run is None else [formats.timestamp(run.started_ns)]
        if run is not None:
            facts.append(inspection.run_status(run, self._ancestry.is_served(branch)))
        known = run.provenance if run else None
        if known is not None:
            facts.append("@".join(part for part in (known.user, known.host) if part))
        if known is not None and known.revision is not None:
            facts.append(f"git {known.revision[:_SHOWN_REVISION]}{' (modified)' if known.dirty else ''}")
        if branch.parent is not None:
            facts.append(f"resumed from {branch.parent[-_SHORT:]}")
        return formats.visible(" · ".join(fact for fact in facts if fact) or formats.timestamp(branch.started_ns))

    def _checkpoint(self, item: Checkpoint | int) -> str:
        if isinstance(item, int):
            return f"… {item} more"
        said = item.metadata
        facts = [f"{item.id[-_SHORT:]} {item.name}@{item.ordinal}"]
        facts += [f"step {said.step}"] * (said.step is not None)
        facts += [f"loss {formats.loss(said.train_loss)}"] * bool(formats.loss(said.train_loss))
        facts += [f"eval {formats.loss(said.eval_loss)}"] * bool(formats.loss(said.eval_loss))
        facts += [str(item.state)] * (item.state != "available")
        return formats.visible(" · ".join(facts)) + _MARK * (item.id == self._found.id)


def _came_from(child: Branch, item: Checkpoint | int) -> bool:
    return not isinstance(item, int) and child.parent == item.id
