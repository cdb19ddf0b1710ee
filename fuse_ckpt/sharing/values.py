"""What lies in a shared object store, as values. No I/O, no clock.

A *group* is one checkpoint as all its nodes see it; a *part* is what one rank of it has written; the *decision* says
that all parts are there, or that the group will never be one. A checkpoint of one node is a group of one part.
Times are integer nanoseconds since the epoch, UTC, of the machine that wrote them: they are shown, and decide nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from fuse_ckpt.model import Entry, Kind, Metadata, Shape

NODES_MAX = 100_000

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Word = Annotated[str, Meta(max_length=300)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
# "" or a UUIDv7: it becomes a file's name.
Id = Annotated[str, Meta(pattern=r"\A([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})?\Z")]
Rank = Annotated[int, Meta(ge=0, lt=NODES_MAX)]
Nodes = Annotated[int, Meta(ge=1, le=NODES_MAX)]


class Format(Struct, frozen=True, omit_defaults=True):
    """`fuse-ckpt.json` at the root of a shared store. `owner`: who alone may write where `exclusive` is set."""

    created_ns: Count
    creates_once: bool  # what the probe found: of many conditional creates one wins
    exclusive: bool = False
    owner: Word = ""
    id: Word = ""  # of this shared store, unlike any other's


class PartFile(Struct, frozen=True, omit_defaults=True):
    """One file, symlink or directory of a part: an Entry, and for a file the key of its bytes.

    `key` is relative to the job's prefix (`d/<group>/<rank>/<digest>`), and may be of an earlier group of the same job,
    whose bytes were the same. It is "" for an empty file, which has no object.
    """

    path: str
    kind: Kind
    mode: Annotated[int, Meta(ge=0, le=0o7777)]
    mtime_ns: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
    size: Count = 0
    digest: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""  # BLAKE3-256, files only
    target: str = ""  # symlinks only
    key: str = ""  # files that are not empty

    @classmethod
    def of(cls, entry: Entry, key: str = "") -> PartFile:
        return cls(entry.path, entry.kind, entry.mode, entry.mtime_ns, entry.size, entry.digest, entry.target, key)

    @property
    def entry(self) -> Entry:
        return Entry(self.path, self.kind, self.mode, self.mtime_ns, self.size, self.digest, self.target)


class Part(Struct, frozen=True, omit_defaults=True):
    """What one rank of a group has written: `p/<group>/<rank>.json`, made when all its data is there.

    `generation` counts the checkpoints that this attempt saved under `name`, from 1. `local`: the id of the checkpoint
    in the writer's own store, and of the whole where there is one node alone. `created_ns`: its last member's close.
    `awaits`: what its files say that others have written: path → bytes at least.
    """

    job: str
    group: str
    rank: Rank
    nodes: Nodes
    name: str
    shape: Shape
    generation: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    attempt: Word
    node: Word
    local: Id
    created_ns: Count
    sealed_ns: Count
    metadata: Metadata
    files: tuple[PartFile, ...]
    companions: tuple[PartFile, ...] = ()  # paths relative to the output directory's root
    parent: Id | None = None
    run: Id | None = None
    awaits: dict[str, Count] = {}


class PartRef(Struct, frozen=True, omit_defaults=True):
    """A part as a decision names it. `digest`: BLAKE3-256 of the part's object."""

    rank: Rank
    node: Word
    local: Id
    digest: Digest
    size: Count
    files: Count


class Verdict(StrEnum):
    COMMIT = "commit"
    ABORT = "abort"


class Decision(Struct, frozen=True, omit_defaults=True):
    """`c/<group>.json`: the group is a checkpoint, or never will be one. Made once, by whoever comes first.

    A commit depends on the parts alone: all who decide write the same bytes. `id`: of the checkpoint, UUIDv7.
    `size`, `files`: of the union of all parts. `borrowed`: earlier groups whose data objects the parts name.
    """

    verdict: Verdict
    job: str
    group: str
    id: Id = ""
    name: str = ""
    shape: Shape | None = None
    generation: Count = 0
    attempt: Word = ""
    nodes: Count = 0
    created_ns: Count = 0  # the last close of any member
    sealed_ns: Count = 0  # the last seal of any part
    size: Count = 0
    files: Count = 0
    metadata: Metadata = Metadata()
    parts: tuple[PartRef, ...] = ()
    borrowed: tuple[str, ...] = ()
    parent: Id | None = None
    run: Id | None = None
    reason: str = ""  # ABORT: why
    by: str = ""  # ABORT: whose word it is
    at_ns: Count = 0  # ABORT: when

    @property
    def committed(self) -> bool:
        return self.verdict is Verdict.COMMIT


class Tombstone(Struct, frozen=True, omit_defaults=True):
    """`x/<group>.json`: the group is deleted, whatever else is still there."""

    job: str
    group: str
    by: str = ""
    at_ns: Count = 0


class Pack(Struct, frozen=True):
    """`s/<hash>.json`: many decisions, by group, each as the text of its own object."""

    decisions: dict[str, str]


class GroupState(StrEnum):
    """How a group stands in the object store. Only `REPLICATED` ones are ever offered."""

    ABSENT = "absent"  # no part of it is there
    PARTIAL = "partial"
    REPLICATED = "replicated"
    ABORTED = "aborted"
    DELETED = "deleted"


class Standing(Struct, frozen=True, omit_defaults=True):
    """How a group stands, and why. `nodes` is 0 where no part could tell. `present`: ranks whose part is there."""

    group: str
    state: GroupState
    nodes: int = 0
    present: tuple[int, ...] = ()
    decision: Decision | None = None


class Registered(Struct, frozen=True):
    """The part that is in the store. Not `ours`: an earlier run of the same rank was first, and its part counts."""

    part: Part
    ours: bool


class Union(Struct, frozen=True):
    """A committed checkpoint with the files of all its parts, as one directory.

    `overlaps`: paths that several ranks have with other bytes; the lowest rank's is the one in `files`.
    """

    decision: Decision
    files: tuple[PartFile, ...]
    companions: tuple[PartFile, ...] = ()
    overlaps: tuple[str, ...] = ()
