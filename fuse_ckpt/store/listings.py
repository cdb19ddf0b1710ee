"""Listing, counting and sorting checkpoints, inside one transaction; where that will do without their records."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from fnmatch import translate
from heapq import nsmallest

from msgspec import Struct

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Checkpoint, State

from . import briefs
from .blob_records import BlobRecords
from .briefs import Brief
from .tables import Table, id_key, id_of, job_prefix

SORTABLE = ("step", "train_loss", "eval_loss", "size")  # what a brief says
_PARENT = b"parent"  # a record without one does not name the field either
_LITERAL = re.compile(r"[A-Za-z0-9_./=-]+")  # what a record holds as it is, in whichever form


class Tally(Struct):
    """The checkpoints of one job in numbers; sizes count a file's bytes for every checkpoint that holds it."""

    available: int = 0
    failed: int = 0
    deleted: int = 0
    bytes: int = 0  # of all but the deleted ones
    trash_bytes: int = 0


class Listings(BlobRecords):
    """Checkpoints by the many. A damaged record is noted in `problems` and left out."""

    def by_id(self, checkpoint: str, *, deleted: bool = False) -> Checkpoint | None:
        """The checkpoint of a full id, unless it is deleted; with `deleted` that one too."""
        key = id_key(checkpoint)
        found = None if key is None else self._get(Table.CHECKPOINTS, key, Checkpoint)
        return None if found is None or (found.state is State.DELETED and not deleted) else found

    def checkpoints(self, job: str | None = None) -> Iterator[Checkpoint]:
        """All checkpoints, deleted ones too, of one job or of all, in the order of their ids."""
        if job is None:
            yield from self._scan(Table.CHECKPOINTS, b"", Checkpoint)
            return
        prefix = job_prefix(job)
        yield from self._readable(id_of(key[len(prefix) :]) for key in self._keys(Table.BY_JOB, prefix))

    def newest_first(self, job: str | None, states: Collection[State], glob: str | None = None) -> Iterator[Checkpoint]:
        """Those in one of `states` whose NAME fits the glob, the last one first; what is not asked for is not read."""
        fits = re.compile(translate(glob)).match if glob is not None else None
        if job is not None:
            found = (id for id, brief in self.briefs(job, newest_first=True) if brief.state in states)
            candidates = self._readable(found)
        elif State.AVAILABLE in states:  # most are, so the first that is looked at will do
            part = _literal(glob)
            rows = (row for row in self._backwards(Table.CHECKPOINTS, b"") if part in row[1])
            candidates = (one for _, one in self._pairs(Table.CHECKPOINTS, rows, Checkpoint) if one.state in states)
        else:
            candidates = self._readable(sorted(self._ids_in(states), reverse=True))
        return (one for one in candidates if fits is None or fits(one.name))

    def smallest(self, job: str | None, states: Collection[State], by: str, limit: int) -> list[Checkpoint]:
        """The first `limit` in the order of one of SORTABLE; those that do not say come last, equals in id order."""
        rows = self._from(Table.BY_JOB, b"") if job is None else self._items(Table.BY_JOB, job_prefix(job))
        said = ((getattr(brief, by), key[-16:]) for key, brief in self._briefs(rows) if brief.state in states)
        chosen = nsmallest(limit, ((value is None, value or 0, key) for value, key in said))
        return list(self._readable(id_of(key) for *_, key in chosen))

    def briefs(self, job: str, *, newest_first: bool = False) -> Iterator[tuple[str, Brief]]:
        """The checkpoints of a job in brief, deleted ones too, by their ids."""
        prefix = job_prefix(job)
        items = (self._backwards if newest_first else self._items)(Table.BY_JOB, prefix)
        return ((id_of(key[-16:]), brief) for key, brief in self._briefs(items))

    def all_briefs(self) -> Iterator[tuple[str, str, Brief]]:
        """(job, id, brief) of every checkpoint, by jobs."""
        for key, brief in self._briefs(self._from(Table.BY_JOB, b"")):
            yield key[:-17].decode(errors="surrogateescape"), id_of(key[-16:]), brief

    def tallies(self) -> dict[str, Tally]:
        """The checkpoints of every job that has some, in numbers."""
        found: dict[bytes, Tally] = defaultdict(Tally)
        for key, state, size in self._counted(b""):
            _count(found[key[:-17]], state, size)
        return {job.decode(errors="surrogateescape"): tally for job, tally in found.items()}

    def tally(self, job: str) -> Tally:
        """The checkpoints of one job in numbers."""
        tally = Tally()
        for _, state, size in self._counted(job_prefix(job)):
            _count(tally, state, size)
        return tally

    def ids(self, begin: str = "") -> Iterator[str]:
        """The ids that begin so (lower case), in order, also of deleted checkpoints; without reading a record."""
        digits = begin.replace("-", "")[:32]
        first = bytes.fromhex(digits[: len(digits) // 2 * 2])
        found = (id_of(key) for key, _ in self._items(Table.CHECKPOINTS, first))
        return (one for one in found if one.startswith(begin))

    def resumed(self, job: str) -> Iterator[Checkpoint]:
        """The checkpoints of a job, deleted ones too, that say what they were resumed from; only these are read."""
        for key in self._keys(Table.BY_JOB, job_prefix(job)):
            row = self._row(Table.CHECKPOINTS, key[-16:])
            if row is not None and _PARENT in row:
                yield from self._readable([id_of(key[-16:])])

    def has_id(self, checkpoint: str) -> bool:
        """Whether a checkpoint of that very id is recorded, deleted or not."""
        key = id_key(checkpoint)
        return key is not None and self._row(Table.CHECKPOINTS, key) is not None

    def id_keys(self) -> set[bytes]:
        """The 16 bytes of every id, also of deleted checkpoints, from the table of the smallest rows."""
        return {key[-16:] for key in self._keys(Table.BY_JOB, b"")}

    def ids_like(self, fragment: str) -> list[str]:
        """The ids that begin or end with `fragment` (lower case), also of deleted checkpoints."""
        if "-" in fragment:
            return [one for one in self.ids() if one.startswith(fragment) or one.endswith(fragment)]
        begin, end = len(fragment) <= 8, len(fragment) <= 12  # the digits before the first dash, and after the last
        return [
            id_of(key)
            for key, _ in self._from(Table.CHECKPOINTS, b"")
            if (end and key.hex().endswith(fragment)) or (begin and key.hex().startswith(fragment))
        ]

    def _ids_in(self, states: Collection[State]) -> list[str]:
        return [id_of(key[-16:]) for key, state, _ in self._counted(b"") if state in states]

    def _briefs(self, items: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Brief]]:
        """The briefs of rows of by_job, under their keys."""
        for key, row in items:
            brief = briefs.unpack(key, row) or self._brief(key[-16:])
            if brief is not None:
                yield key, brief

    def _counted(self, prefix: bytes) -> Iterator[tuple[bytes, State, int]]:
        """(key of by_job, state, size) of every checkpoint whose key begins so."""
        items = self._items(Table.BY_JOB, prefix) if prefix else self._from(Table.BY_JOB, b"")
        for key, row in items:
            counted = briefs.count(key, row)
            if counted is None:
                brief = self._brief(key[-16:])
                counted = None if brief is None else (brief.state, brief.size)
            if counted is not None:
                yield (key, *counted)

    def _readable(self, ids: Iterable[str]) -> Iterator[Checkpoint]:
        for one in ids:
            try:
                found = self.by_id(one, deleted=True)
            except CorruptRecord as error:
                self._problems[str(error)] = None
                continue
            if found is not None:
                yield found

    def _brief(self, key: bytes) -> Brief | None:
        found = next(self._readable([id_of(key)]), None)
        return None if found is None else briefs.of(found)


def _count(tally: Tally, state: State, size: int) -> None:
    if state is State.DELETED:
        tally.deleted += 1
        tally.trash_bytes += size
        return
    tally.bytes += size
    if state is State.AVAILABLE:
        tally.available += 1
    else:
        tally.failed += state is State.FAILED


def _literal(glob: str | None) -> bytes:
    """Bytes that the record of every checkpoint must hold whose NAME fits the glob."""
    if glob is None or "[" in glob:
        return b""
    return max(_LITERAL.findall(glob), key=len, default="").encode()
