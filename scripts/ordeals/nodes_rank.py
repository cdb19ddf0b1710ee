"""What the processes of `scripts/nodes` do: a rank that saves groups, and a janitor that aborts and deletes some.

Each is killed at a random fault point, or at a random moment by its parent, and begins again with what its files say.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3
from msgspec import Struct
from uuid_utils import uuid7

from fuse_ckpt import faults
from fuse_ckpt.errors import FuseCkptError, StorageFailed, Withdrawn
from fuse_ckpt.model import Connection, Entry, Kind, Metadata, Shape
from fuse_ckpt.sharing import GroupState, Part, PartFile, SharedStore, Standing, group_of
from fuse_ckpt.transfer import Place, Remote

JOB = "nodes"
NAME = "step-{number}"
NS = 1_700_000_000_000_000_000
SECOND = 10**9
PATIENCE = 2.0  # seconds a request is tried for
FROZEN = 20_000  # bytes that a rank has in each of its checkpoints, and sends once
LARGE = 18 << 20  # bytes, which go in parts
LARGE_EVERY = 25  # groups
ABSENT_EVERY = 12  # groups, of each of which one rank never comes
DUEL_EVERY = 3  # groups, of each of which some ranks say that it is none when all of it is there
GRACE_NS = 8 * SECOND  # above what making a part can take here: three tries
REAPED_NS = 5 * SECOND
PAUSE = 0.05  # seconds


class Field(Struct, frozen=True):
    """What all processes know. `top`: their directory; `limit` in it says how many groups there are to be."""

    connection: Connection
    bucket: str
    prefix: str
    top: str
    seed: int
    nodes: int
    large: bool

    def store(self, owner: str, cache: Path | None = None) -> SharedStore:
        remote = Remote(self.connection, self.bucket, {"AWS_METADATA_ENDPOINT": "http://127.0.0.1:1/"}, PATIENCE)
        return SharedStore(remote, Place(self.bucket, self.prefix), owner=owner, cache=cache)

    def limit(self) -> int:
        return int((Path(self.top) / "limit").read_text())

    def ledger(self, who: str) -> Path:
        """What a process has seen decided: a line "number verdict id" each."""
        return Path(self.top) / f"{who}.ledger"

    def marker(self, rank: int | None) -> Path:
        """A file that is there since a process began its work."""
        return Path(self.top) / f"{rank}.begun"

    def began(self, rank: int | None) -> float:
        """When it did, in seconds since the epoch; never, where it has not yet."""
        try:
            return self.marker(rank).stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def group(self, number: int) -> str:
        return group_of(JOB, "0", NAME.format(number=number), 1)

    def absent(self, number: int) -> int | None:
        """The rank that never comes to that group."""
        return random.Random(f"{self.seed} {number}").randrange(self.nodes) if number % ABSENT_EVERY == 7 else None

    def content(self, number: int, rank: int) -> dict[str, bytes]:
        """What a rank writes."""
        chance = random.Random(f"{self.seed} {number} {rank}")
        size = LARGE if self.large and number % LARGE_EVERY == 3 and rank == 0 else chance.randrange(1, 40_000)
        files = {f"shard-{rank}.bin": chance.randbytes(size), "config.json": b"{}", f"empty-{rank}": b""}
        files[f"frozen-{rank}.bin"] = random.Random(f"{self.seed} {rank}").randbytes(FROZEN)
        return files


def live(field: Field, rank: int | None, dies_at: int, seed: int) -> None:
    """A process: a rank, or the janitor (None). `dies_at`: the fault point that kills it, counted from 1; 0: none."""
    reached = 0

    def hook(point: str) -> None:
        nonlocal reached
        reached += 1
        if reached == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    field.marker(rank).touch()
    with faults.install(hook):
        if rank is None:
            _Janitor(field, random.Random(seed)).work()
        else:
            _Rank(field, rank, random.Random(seed)).work()


def seen(ledger: Path) -> Iterator[tuple[int, str, str]]:
    """The lines of a ledger; the last one may be half written."""
    if ledger.exists():
        for line in ledger.read_text().splitlines():
            words = line.split(" ")
            if len(words) == 4 and words[3] == ".":
                yield int(words[0]), words[1], words[2]


def note(ledger: Path, number: int, standing: Standing) -> None:
    decision = standing.decision
    verdict, id_ = (str(decision.verdict), decision.id) if decision is not None else (str(standing.state), "")
    with ledger.open("ab", buffering=0) as file:
        file.write(f"\n{number} {verdict} {id_ or '-'} .\n".encode())


class _Rank:
    """Saves each group, tells nobody, and looks until all are decided."""

    def __init__(self, field: Field, rank: int, chance: random.Random) -> None:
        self._field, self._rank, self._chance = field, rank, chance
        self._store = field.store(f"rank-{rank}")
        self._ledger = field.ledger(f"rank-{rank}")
        self._lent = Path(field.top) / f"rank-{rank}.lent"
        self._source = Path(field.top) / f"rank-{rank}.source"
        self._put: set[int] = set()

    def work(self) -> None:
        decided = {number for number, _, _ in seen(self._ledger)}
        while open_ones := [number for number in range(self._field.limit()) if number not in decided]:
            for number in open_ones[: self._chance.randrange(1, 8)]:
                with suppress(StorageFailed):  # it is away, or a partition between: later
                    if self._decided(number):
                        decided.add(number)
            time.sleep(PAUSE)

    def _decided(self, number: int) -> bool:
        if number not in self._put and self._field.absent(number) != self._rank:
            self._save(number)
            self._put.add(number)
        standing = self._stands(number)
        if standing.state in (GroupState.ABSENT, GroupState.PARTIAL):
            return False
        note(self._ledger, number, standing)
        return True

    def _stands(self, number: int) -> Standing:
        """How the group stands when this rank has had its say."""
        group = self._field.group(number)
        if number % DUEL_EVERY or self._field.absent(number) is not None:
            return self._store.reconcile(JOB, group, rank=self._rank if self._chance.random() < 0.5 else None)
        standing = self._store.standing(JOB, group)
        if len(standing.present) < self._field.nodes:
            return standing
        if self._chance.random() < 0.5:
            return self._store.reconcile(JOB, group)
        return self._store.abort(JOB, group, f"rank {self._rank} does not want it", NS)

    def _save(self, number: int) -> None:
        group = self._field.group(number)
        files = self._field.content(number, self._rank)
        lent = self._borrowed()
        try:
            self._store.put_part(self._part(number, group, files, lent))
        except Withdrawn:
            self._store.put_part(self._part(number, group, files, None))

    def _part(self, number: int, group: str, files: dict[str, bytes], lent: PartFile | None) -> Part:
        sent = [self._sent(group, path, data, lent) for path, data in files.items()]
        frozen = next(file for file in sent if file.path.startswith("frozen"))
        self._lent.write_text(frozen.key)
        return Part(
            JOB, group, self._rank, self._field.nodes, NAME.format(number=number), Shape.DIRECTORY, 1, "0",
            f"node-{self._rank}", str(uuid7()), NS + number, NS + number, Metadata(step=number), tuple(sent),
        )  # fmt: skip

    def _sent(self, group: str, path: str, data: bytes, lent: PartFile | None) -> PartFile:
        digest = blake3(data).hexdigest()
        if lent is not None and lent.digest == digest:
            return lent
        self._source.write_bytes(data)
        key = self._store.put_data(JOB, group, self._rank, self._source, len(data), digest)
        return PartFile.of(Entry(path, Kind.FILE, 0o644, NS, len(data), digest), key)

    def _borrowed(self) -> PartFile | None:
        """The frozen file as an earlier part named it, if its bytes may be named again."""
        key = self._lent.read_text() if self._lent.exists() else ""
        if key.count("/") != 3 or len(key.rpartition("/")[2]) != 64:
            return None
        group = key.split("/")[1]
        if not self._store.reusable(JOB, [group]):
            return None
        entry = Entry(f"frozen-{self._rank}.bin", Kind.FILE, 0o644, NS, FROZEN, key.rpartition("/")[2])
        return PartFile.of(entry, key)


class _Janitor:
    """Aborts some of what is partial, deletes some of what is whole, and reaps; until the file `stop` is there."""

    def __init__(self, field: Field, chance: random.Random) -> None:
        self._field, self._chance = field, chance
        self._store = field.store("janitor", Path(field.top) / "cache")
        self._ledger = field.ledger("janitor")
        self._numbers: dict[str, int] = {}

    def work(self) -> None:
        while not (Path(self._field.top) / "stop").exists():
            self._numbers = {self._field.group(number): number for number in range(self._field.limit())}
            with suppress(FuseCkptError):
                self._chance.choice([self._abort, self._reap, self._bury, self._delete])()
            time.sleep(PAUSE * 4)

    def _note(self, standing: Standing) -> None:
        note(self._ledger, self._numbers[standing.group], standing)

    def _abort(self) -> None:
        found = self._store.undecided(JOB)
        if found and self._chance.random() < 0.3:
            self._note(self._store.abort(JOB, self._chance.choice(found).group, "by chance", NS))

    def _reap(self) -> None:
        for standing in self._store.reap(JOB, NS, older_than_ns=REAPED_NS):
            self._note(standing)

    def _bury(self) -> None:
        """Those that lend their data to others are the ones that matter."""
        found = self._store.list(JOB)
        if len(found) > 5 and self._chance.random() < 0.5:
            lenders = [group for one in found for group in one.borrowed if group in {each.group for each in found}]
            self._store.tombstone(JOB, self._chance.choice(lenders or [one.group for one in found]), NS)

    def _delete(self) -> None:
        alive = {one.group for one in self._store.list(JOB, aborted=True)}
        self._store.delete(JOB, sorted(self._numbers.keys() - alive), grace_ns=GRACE_NS)
