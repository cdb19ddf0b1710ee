"""Values that tell of copies in object stores; `fuse_ckpt.model` has them, too. No I/O, no clock."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

RANKS_NAMED = 5  # of those that are missing


class Stage(StrEnum):
    """How far the copy of a checkpoint in an object store is."""

    WAITING = "waiting"
    UPLOADING = "uploading"
    PARTIAL = "partial"  # our part is there, and others' are not
    REPLICATED = "replicated"
    ABORTED = "aborted"  # others decided that it is not to be
    GIVEN_UP = "given up"
    REMOVING = "removing"  # the checkpoint is no more, and its copy is to go


class Replication(Struct, frozen=True, omit_defaults=True):
    """Where the checkpoints of a job are to be copied to, and which part of them this node writes.

    `attempt` is what the nodes of one start of a run have in common, and no other start of the job; for a single node
    it is of no use.
    """

    storage: str  # the name of a connection
    rank: int = 0
    nodes: int = 1
    attempt: str = ""

    @property
    def part(self) -> int | None:
        """The rank, where this node writes a part of each checkpoint; None where it writes all of it."""
        return self.rank if self.nodes > 1 else None


class Replica(Struct, frozen=True, omit_defaults=True):
    """The copy of a checkpoint in an object store: on its way there, arrived, or come from there."""

    storage: str  # the name of a connection
    stage: Stage
    changed_ns: int
    rank: int = 0
    nodes: int = 1
    attempt: str = ""
    generation: int = 1  # this is the n-th checkpoint of its NAME in the attempt
    group: str = ""  # what it is called there, once that is known
    sent: int = 0  # bytes that are there
    size: int = 0  # bytes of all its files
    parts: tuple[int, ...] = ()  # the ranks whose parts were seen there
    reason: str | None = None  # why it was given up, aborted, or does not get on
    job: str = ""  # whose copy is to go
    became: str | None = None  # the id of the checkpoint of all nodes that this node's part of it has become

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done for it any more."""
        return self.stage in (Stage.REPLICATED, Stage.ABORTED, Stage.GIVEN_UP)

    @property
    def is_unsent(self) -> bool:
        """Whether bytes of it are still to be sent."""
        return self.stage in (Stage.WAITING, Stage.UPLOADING)

    @property
    def words(self) -> str:
        """ "waiting", "uploading 62 %", "partial 3/4 (missing rank 2)", "replicated", "aborted", "given up"."""
        if self.stage is Stage.UPLOADING:
            return f"uploading {min(99, 100 * self.sent // self.size) if self.size else 0} %"
        if self.stage is not Stage.PARTIAL:
            return str(self.stage)
        missing = [rank for rank in range(self.nodes) if rank not in self.parts]
        named = ", ".join(map(str, missing[:RANKS_NAMED])) + (", …" if len(missing) > RANKS_NAMED else "")
        lacking = f" (missing rank{'s' if len(missing) > 1 else ''} {named})" if missing else ""
        return f"partial {self.nodes - len(missing)}/{self.nodes}{lacking}"
