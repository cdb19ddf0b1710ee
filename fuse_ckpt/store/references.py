"""What a person types to mean a checkpoint (REF), and which checkpoint of a job is its latest and its best. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from fuse_ckpt.errors import InvalidReference, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, State

FRAGMENT_MIN = 4  # characters of an id; fewer would mean something else tomorrow
CANDIDATES = 5  # how many an ambiguous reference lists
FRAGMENT = re.compile(rf"[0-9a-f-]{{{FRAGMENT_MIN},}}", re.IGNORECASE)
VERSION = re.compile(r"(?P<name>.*)@(?P<ordinal>[0-9]{1,10})", re.DOTALL)


class Catalog(Protocol):
    """What the readings of a reference ask. Nothing in it answers with a deleted checkpoint, but for `ids`."""

    def by_id(self, checkpoint: str) -> Checkpoint | None: ...
    def version(self, job: str, name: str, ordinal: int) -> Checkpoint | None: ...
    def newest(self, job: str, name: str) -> Checkpoint | None: ...
    def checkpoints(self, job: str | None = None) -> Iterator[Checkpoint]: ...
    def ids(self) -> Iterator[str]: ...


Reading = Callable[[str, Catalog], Checkpoint | None]


def resolve(reference: str, catalog: Catalog) -> Checkpoint:
    """The checkpoint that `reference` means. Errors: InvalidReference (empty, ambiguous), UnknownCheckpoint."""
    if not reference:
        raise InvalidReference(
            "A checkpoint's reference is empty: give an id, JOB:latest, JOB:best, JOB/NAME or JOB/NAME@N."
        )
    for reading in READINGS:
        found = reading(reference, catalog)
        if found is not None:
            return found
    raise UnknownCheckpoint(reference)


def latest(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The newest available one that can be resumed, else the newest that holds weights. `checkpoints`: in id order."""
    available = [one for one in checkpoints if one.state is State.AVAILABLE]
    resumable = (one for one in reversed(available) if one.metadata.resumable)
    weights = (one for one in reversed(available) if one.metadata.weights)
    return next(resumable, None) or next(weights, None)


def best(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The available one of the lowest finite evaluation loss; of equals the newest. `checkpoints`: in id order."""
    chosen: Checkpoint | None = None
    lowest = math.inf
    for one in checkpoints:
        loss = one.metadata.eval_loss
        if one.state is State.AVAILABLE and loss is not None and math.isfinite(loss) and loss <= lowest:
            chosen, lowest = one, loss
    return chosen


def _full_id(reference: str, catalog: Catalog) -> Checkpoint | None:
    return catalog.by_id(reference.lower())


def _pushed(reference: str, catalog: Catalog) -> Checkpoint | None:
    match = VERSION.fullmatch(reference)
    found = catalog.version("", match["name"], int(match["ordinal"])) if match else None
    return found or catalog.newest("", reference)


def _of_job(reference: str, catalog: Catalog) -> Checkpoint | None:
    job, colon, word = reference.rpartition(":")
    choose = {"latest": latest, "best": best}.get(word)
    if not colon or choose is None or "/" in job:
        return None
    return choose(catalog.checkpoints(job))


def _version(reference: str, catalog: Catalog) -> Checkpoint | None:
    job, slash, rest = reference.partition("/")
    match = VERSION.fullmatch(rest)
    return catalog.version(job, match["name"], int(match["ordinal"])) if slash and match else None


def _name(reference: str, catalog: Catalog) -> Checkpoint | None:
    job, slash, name = reference.partition("/")
    return catalog.newest(job, name) if slash else None


def _fragment(reference: str, catalog: Catalog) -> Checkpoint | None:
    if not FRAGMENT.fullmatch(reference):
        return None
    text = reference.lower()
    fitting = [one for one in catalog.ids() if one.startswith(text) or one.endswith(text)]
    found = [one for one in map(catalog.by_id, fitting) if one is not None]
    if len(found) > 1:
        raise InvalidReference(_ambiguous(reference, found))
    return found[0] if found else None


# In the order of precedence. Tags belong between the first and the second.
READINGS: tuple[Reading, ...] = (_full_id, _pushed, _of_job, _version, _name, _fragment)


def _ambiguous(reference: str, found: Sequence[Checkpoint]) -> str:
    shown = ", ".join(f"{one.id} {one.job}/{one.name}" for one in found[:CANDIDATES])
    more = f" and {len(found) - CANDIDATES} more" if len(found) > CANDIDATES else ""
    return f"{reference!r} fits {len(found)} checkpoints: {shown}{more}. Give more characters of one."
