"""What a person types to mean a checkpoint (REF), and which checkpoint of a job is its latest and its best. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from fuse_ckpt.errors import InvalidReference, InvalidTag, UnknownCheckpoint
from fuse_ckpt.model import Checkpoint, State

from .briefs import Brief

FRAGMENT_MIN = 4  # characters of an id; fewer would mean something else tomorrow
CANDIDATES = 5  # how many an ambiguous reference lists
TAG_MAX = 200  # bytes; a tag is a key of the index, which may have 511
FRAGMENT = re.compile(rf"[0-9a-f-]{{{FRAGMENT_MIN},}}", re.IGNORECASE)
VERSION = re.compile(r"(?P<name>.*)@(?P<ordinal>[0-9]{1,10})", re.DOTALL)


class Catalog(Protocol):
    """What the readings of a reference ask. Without `deleted` nothing in it answers with a deleted checkpoint, but for
    `ids_like` and `offered`."""

    def by_id(self, checkpoint: str, *, deleted: bool = False) -> Checkpoint | None: ...
    def tagged(self, tag: str) -> Checkpoint | None: ...
    def version(self, job: str, name: str, ordinal: int, *, deleted: bool = False) -> Checkpoint | None: ...
    def newest(self, job: str, name: str) -> Checkpoint | None: ...
    def offered(self, job: str, *, newest_first: bool = False) -> Iterator[tuple[str, Brief]]: ...
    def ids_like(self, fragment: str) -> list[str]: ...


Reading = Callable[[str, Catalog], Checkpoint | None]


def resolve(reference: str, catalog: Catalog) -> Checkpoint:
    """The checkpoint that `reference` means. Errors: InvalidReference (empty, ambiguous), UnknownCheckpoint."""
    if not reference:
        raise InvalidReference(
            "A checkpoint's reference is empty: give an id, a tag, JOB:latest, JOB:best, JOB/NAME or JOB/NAME@N."
        )
    for reading in READINGS:
        found = reading(reference, catalog)
        if found is not None:
            return found
    raise UnknownCheckpoint(reference)


def resolve_deleted(reference: str, catalog: Catalog) -> Checkpoint:
    """The deleted checkpoint that an id, JOB/NAME@N, a pushed one's NAME@N, or a fragment of an id means.

    Errors: as `resolve`.
    """
    found = (
        catalog.by_id(reference.lower(), deleted=True)
        or _numbered("", reference, catalog, deleted=True)
        or _version(reference, catalog, deleted=True)
    )
    if found is not None and found.state is State.DELETED:
        return found
    found = _fragment(reference, catalog, lambda one: one.state is State.DELETED)
    if found is None:
        raise UnknownCheckpoint(reference)
    return found


def latest(newest_first: Iterable[tuple[str, Brief]]) -> str | None:
    """The id of the newest available one that can be resumed, else of the newest that holds weights."""
    weights = None
    for checkpoint, brief in newest_first:
        if brief.state is not State.AVAILABLE:
            continue
        if brief.resumable:
            return checkpoint
        if weights is None and brief.weights:
            weights = checkpoint
    return weights


def best(briefs: Iterable[tuple[str, Brief]]) -> str | None:
    """The id of the available one with weights that has the lowest evaluation loss; where none says one, the lowest
    training loss. Of equals the newest. `briefs`: in id order."""
    chosen: tuple[tuple[int, float], str] | None = None
    for checkpoint, brief in briefs:
        if brief.state is not State.AVAILABLE or not (brief.weights or brief.resumable):
            continue
        said = (0, brief.eval_loss) if brief.eval_loss is not None else (1, brief.train_loss)
        if said[1] is not None and (chosen is None or said <= chosen[0]):
            chosen = (said[0], said[1]), checkpoint
    return None if chosen is None else chosen[1]


def check_tag(tag: str) -> str:
    """Return `tag` if it can be one, else raise InvalidTag saying why: it must never hide another reference."""
    if not tag:
        raise InvalidTag('A tag is empty: give it a name, as in "checkpoint tag REF release-1".')
    if len(tag.encode(errors="surrogateescape")) > TAG_MAX:
        raise InvalidTag(f"A tag is longer than {TAG_MAX} bytes ({tag[:20]}…): choose a shorter one.")
    bad = next((c for c in tag if c in "/:@" or not c.isprintable()), None)
    if bad is not None or tag[0] in "-." or tag != tag.strip():
        what = f"has {bad!r} in it" if bad else "begins with '-' or '.', or has space around it"
        raise InvalidTag(f"Tag {tag!r} {what}: use letters, digits, '-', '_', '.' and '='.")
    if FRAGMENT.fullmatch(tag):
        raise InvalidTag(f"Tag {tag!r} could be part of an id: add a letter that is none of a to f.")
    return tag


def _full_id(reference: str, catalog: Catalog) -> Checkpoint | None:
    return catalog.by_id(reference.lower())


def _tag(reference: str, catalog: Catalog) -> Checkpoint | None:
    return catalog.tagged(reference)


def _pushed(reference: str, catalog: Catalog) -> Checkpoint | None:
    return _numbered("", reference, catalog) or catalog.newest("", reference)


def _of_job(reference: str, catalog: Catalog) -> Checkpoint | None:
    job, colon, word = reference.rpartition(":")
    if not colon or word not in ("latest", "best") or "/" in job:
        return None
    found = latest(catalog.offered(job, newest_first=True)) if word == "latest" else best(catalog.offered(job))
    return None if found is None else catalog.by_id(found)


def _version(reference: str, catalog: Catalog, *, deleted: bool = False) -> Checkpoint | None:
    job, slash, rest = reference.partition("/")
    return _numbered(job, rest, catalog, deleted=deleted) if slash else None


def _numbered(job: str, text: str, catalog: Catalog, *, deleted: bool = False) -> Checkpoint | None:
    """NAME@N of a job; of the pushed ones where that is ""."""
    match = VERSION.fullmatch(text)
    return catalog.version(job, match["name"], int(match["ordinal"]), deleted=deleted) if match else None


def _name(reference: str, catalog: Catalog) -> Checkpoint | None:
    job, slash, name = reference.partition("/")
    return catalog.newest(job, name) if slash else None


def _fragment(
    reference: str, catalog: Catalog, fits: Callable[[Checkpoint], bool] = lambda one: one.state is not State.DELETED
) -> Checkpoint | None:
    if not FRAGMENT.fullmatch(reference):
        return None
    alike = (catalog.by_id(one, deleted=True) for one in catalog.ids_like(reference.lower()))
    found = [one for one in alike if one is not None and fits(one)]
    if len(found) > 1:
        raise InvalidReference(_ambiguous(reference, found))
    return found[0] if found else None


READINGS: tuple[Reading, ...] = (_full_id, _tag, _pushed, _of_job, _version, _name, _fragment)  # by precedence


def _ambiguous(reference: str, found: Sequence[Checkpoint]) -> str:
    shown = ", ".join(f"{one.id} {one.place}" for one in found[:CANDIDATES])
    more = f" and {len(found) - CANDIDATES} more" if len(found) > CANDIDATES else ""
    return f"{reference!r} fits {len(found)} checkpoints: {shown}{more}. Give more characters of one."
