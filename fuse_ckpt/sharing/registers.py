"""The small objects that are made once and never changed: how they are made, and found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from blake3 import blake3
from msgspec import Struct

from fuse_ckpt.errors import Corrupt, NotFound, StorageFailed, UsageError
from fuse_ckpt.faults import fault
from fuse_ckpt.transfer import Found, Place, Remote, Stop, run

from . import documents, keys
from .values import Decision, Format, Part, Tombstone

AT_ONCE = 32  # requests for small objects

T = TypeVar("T", bound=Struct)


class Registers:
    """The small objects of the shared store at `place`. Thread-safe."""

    def __init__(self, remote: Remote, place: Place) -> None:
        self.remote = remote
        self.place = place

    def key(self, job: str, name: str) -> str:
        """The whole key of a job's object. Errors: InvalidJobName, StorageFailed (it is too long)."""
        return self.place.key(f"{keys.job_prefix(job)}/{name}")

    def format(self) -> Format:
        """Errors: NotFound, UsageError (an export lies there), Corrupt."""
        key = self.place.key(keys.FORMAT)
        data = self.remote.get(key, documents.SMALL)
        if data is None:
            raise NotFound(f"{self.place} holds no shared store: make one, or name the path of one.")
        if b'"export"' in data[:1000]:
            raise UsageError(f"{self.place} holds an export of a checkpoint: name another path.")
        return documents.understood(data, Format, f"{self.place}/{keys.FORMAT}")

    def claim(self, job: str, name: str, value: T, limit: int = documents.SMALL) -> tuple[T, bytes]:
        """Make the object unless it is there; what it says now, and its bytes."""
        key = self.key(job, name)
        mine = documents.written(value)
        fault(f"share:{name[0]}")
        data = self.remote.claim(key, mine, limit)
        self.remote.settle(self.place.key(keys.job_prefix(job)), [key])
        fault(f"share:{name[0]}:done")
        if data == mine and self.remote.get(key, limit) != mine:
            raise StorageFailed(f"{key} is not as it was sent: the object store does not keep what it is given.")
        return (value if data == mine else documents.understood(data, type(value), key)), data

    def decision(self, job: str, group: str) -> Decision | None:
        key = self.key(job, keys.decision_key(group))
        data = self.remote.get(key, documents.SMALL)
        return None if data is None else self.decision_of(job, group, data)

    def decision_of(self, job: str, group: str, data: bytes) -> Decision:
        """The decision in those bytes. Errors: Corrupt."""
        found = documents.understood(data, Decision, f"The decision on {group}")
        if (found.job, found.group) != (job, group):
            raise Corrupt(f"The decision on {group} is about another group.")
        return found

    def buried(self, job: str, group: str) -> bool:
        """Whether the group has a tombstone. One that cannot be read is one too."""
        return self.remote.head(self.key(job, keys.tombstone_key(group))) is not None

    def bury(self, stone: Tombstone) -> None:
        self.claim(stone.job, keys.tombstone_key(stone.group), stone)

    def ranks(self, job: str, group: str) -> dict[int, Found]:
        """The parts that are there, by rank."""
        found = self.remote.list(self.key(job, f"p/{group}"))
        named = {keys.part_rank(key.rpartition("/")[2]): one for key, one in found.items()}
        return {rank: one for rank, one in sorted(named.items(), key=lambda item: item[0] or 0) if rank is not None}

    def part(self, job: str, group: str, rank: int) -> tuple[Part, str] | None:
        """A part, and its object's digest."""
        key = self.key(job, keys.part_key(group, rank))
        data = self.remote.get(key, documents.LIMIT)
        if data is None:
            return None
        return self.part_of(job, group, rank, data), blake3(data).hexdigest()

    def part_of(self, job: str, group: str, rank: int, data: bytes) -> Part:
        """The part in those bytes. Errors: Corrupt."""
        key = self.key(job, keys.part_key(group, rank))
        found = documents.understood(data, Part, key)
        if (found.job, found.group, found.rank) != (job, group, rank):
            raise Corrupt(f"{key} is another part than it is named for.")
        return found

    def parts(self, job: str, group: str, ranks: Iterable[int]) -> dict[int, tuple[Part, str]]:
        """Those of the parts that are there, several asked for at once."""
        found: dict[int, tuple[Part, str]] = {}

        def ask(rank: int) -> None:
            part = self.part(job, group, rank)
            if part is not None:
                found[rank] = part

        wanted = list(ranks)
        run(min(AT_ONCE, len(wanted)), wanted, ask, Stop())
        return found

    def groups_below(self, job: str, name: str) -> dict[str, Found]:
        """The groups that have a decision ("c") or a tombstone ("x")."""
        found = self.remote.list(self.key(job, name))
        named = {keys.document_group(key.rpartition("/")[2]): one for key, one in found.items()}
        return {group: one for group, one in named.items() if group is not None}

    def now_ns(self) -> int:
        """The object store's own time, to the second."""
        key = self.place.key(keys.CLOCK)
        self.remote.put(key, b"")
        found = self.remote.head(key)
        if found is None:
            raise StorageFailed(f"{key} was put and is not there: the store does not show what it was given.")
        return found.modified_ns
