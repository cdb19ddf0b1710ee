"""`scripts/nodes`: machines that share an object store, each killed at random, again and again; nothing may be lost.

Every rank is a process that saves its part of each group; a janitor aborts, deletes and reaps beside them. At the end a
machine with an empty store reads all that is offered, and every decision that anybody ever saw must be the one there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.sharing import GroupState, SharedStore
from fuse_ckpt.transfer import Place, Remote, probe
from scripts.ordeals import nodes_rank
from scripts.ordeals.mounts import OrdealError, run, workspace
from scripts.ordeals.nodes_rank import JOB, NS, Field, seen
from tests.transfer.proxy import HANG_UP, LOST, Proxy, before
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed, running

FAULTS_MAX = 40  # fault points that a life reaches at most, where it dies at one
LIFE_MAX = 1.5  # seconds that a life lasts at most
STEP = 10  # groups that are added where all are decided, and more kills are wanted
END_PATIENCE = 240.0  # seconds, for all to be decided when nobody is killed any more
DOWN = (0.2, 1.5)  # seconds that a server or a way to it is away


@dataclass
class Report:
    """What a run came to."""

    seed: int
    kills: int = 0
    at_fault_points: int = 0
    servers: int = 0
    partitions: int = 0
    lost_answers: int = 0
    groups: int = 0
    committed: int = 0
    aborted: int = 0
    deleted: int = 0
    bytes_read: int = 0
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        return (
            f"{self.kills} kills, {self.at_fault_points} of them at fault points, {self.servers} of the object store,"
            f" {self.partitions} partitions, {self.lost_answers} answers lost (seed {self.seed}): {self.groups} groups,"
            f" {self.committed} committed, {self.aborted} aborted, {self.deleted} deleted; {self.bytes_read} bytes read"
            f" back; {len(self.problems)} problems"
        )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/nodes",
        description="Kill ranks that share an object store at random; exit with 1 where a group is both committed and"
        " aborted, a committed one lacks a byte, or a complete one is not decided.",
    )
    add = parser.add_argument
    add("--kills", type=int, default=200, metavar="N", help="of ranks and of the janitor (200)")
    add("--groups", type=int, default=100, metavar="N", help="that there are at least (100)")
    add("--nodes", type=int, default=4, metavar="N", help="ranks of each group (4)")
    add("--servers", type=int, default=0, metavar="N", help="kills of the object store itself (0)")
    add("--network", action="store_true", help="partitions, refusals and lost answers beside the kills")
    add("--provider", choices=("s3", "file"), default="s3", help="SeaweedFS, or a directory (s3)")
    add("--large", action="store_true", help="also files that go in several parts")
    add("--seed", type=int, default=None, metavar="S", help="of all that is random (the time)")
    add("--directory", type=Path, metavar="DIR", help="the disk to do it on (the temporary directory)")
    add("--json", type=Path, metavar="FILE", help="write what came of it there")
    return parser.parse_args(given)


def main() -> int:
    return run("nodes", nodes, arguments())


def nodes(chosen: argparse.Namespace) -> int:
    """Run it; 1 where there is a problem."""
    seed = chosen.seed if chosen.seed is not None else time.time_ns() % 10**6
    report = Report(seed)
    parent = chosen.directory or Path(tempfile.gettempdir())
    with workspace(parent, "nodes") as top, _places(top, chosen, report) as places:
        ordeal = Ordeal(top, chosen, report, places)
        ordeal.work()
        Examination(ordeal.field, report).work()
    print(report.text())
    for problem in report.problems:
        print(f"  {problem}")
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(report)))
    return int(bool(report.problems))


@dataclass
class Places:
    """Where the object store is: to the examination, and to each rank and the janitor (last)."""

    direct: Connection
    bucket: str
    each: list[Connection]
    server: Seaweed | None
    proxies: list[Proxy]


@contextlib.contextmanager
def _places(top: Path, chosen: argparse.Namespace, report: Report) -> Iterator[Places]:
    count = chosen.nodes + 1
    if chosen.provider == "file":
        (top / "archive").mkdir()
        directory = Connection("disk", Provider.FILE, 1, root=str(top / "archive"))
        yield Places(directory, "", [directory] * count, None, [])
        return
    with running(top / "seaweed", volumes=60) as server, contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(before(server.port)) for _ in range(count if chosen.network else 0)]
        each = [server.connection(endpoint=proxy.endpoint) for proxy in proxies] or [server.connection()] * count
        chance = random.Random(report.seed)
        for proxy in proxies:
            proxy.decide = lambda method, path, number: _harm(chance, report, method)
        yield Places(server.connection(), BUCKET, each, server, proxies)


def _harm(chance: random.Random, report: Report, method: str) -> int | None:
    """What an unreliable network does to a request."""
    drawn = chance.random()
    if method == "PUT" and drawn < 0.05:
        report.lost_answers += 1
        return LOST
    return next((harm for limit, harm in ((0.06, 409), (0.07, 503), (0.08, HANG_UP)) if drawn < limit), None)


class Ordeal:
    """Keeps the processes alive, and kills them."""

    def __init__(self, top: Path, chosen: argparse.Namespace, report: Report, places: Places) -> None:
        self._chosen, self._report, self._places = chosen, report, places
        self._chance = random.Random(report.seed)
        self._top = top / "nodes"
        self._top.mkdir()
        self.field = Field(
            places.direct, places.bucket, "shared", str(self._top), report.seed, chosen.nodes, chosen.large
        )
        self._limit = chosen.groups
        self._say_limit()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["scripts.ordeals.nodes_rank"])
        self._lives: dict[int | None, tuple[ForkServerProcess, float]] = {}
        self._servers_at = sorted(self._chance.randrange(chosen.kills or 1) for _ in range(chosen.servers))

    def work(self) -> None:
        place = Place(self._places.bucket, self.field.prefix)
        remote = Remote(self._places.direct, self._places.bucket, NOWHERE, 30.0)
        SharedStore(remote, place).establish(probe(remote, place), NS)
        ranks: list[int | None] = [*range(self._chosen.nodes), None]
        try:
            while self._killing:
                for rank in ranks:
                    self._tend(rank)
                self._harm_servers()
                time.sleep(0.01)
            self._finish(ranks)
        finally:
            for process, _ in self._lives.values():
                process.kill()
                process.join()

    @property
    def _killing(self) -> bool:
        return self._report.kills < self._chosen.kills

    def _tend(self, rank: int | None) -> None:
        """See that the process lives, and whether it is time that it does not."""
        life = self._lives.get(rank)
        if life is None:
            self._begin(rank)
            return
        process, dies = life
        if process.is_alive() and time.monotonic() > dies:
            process.kill()
            process.join()
            self._report.kills += 1
            self._begin(rank)
        elif not process.is_alive():
            self._ended(rank, process)

    def _ended(self, rank: int | None, process: ForkServerProcess) -> None:
        process.join()
        if process.exitcode == -9:
            self._report.kills += 1
            self._report.at_fault_points += 1
        elif process.exitcode != 0:
            raise OrdealError(f"rank {rank} ended with {process.exitcode}: its words are above")
        elif rank is not None and self._killing:
            if self._limit < max([len(self._done(rank)), 0]) + STEP:
                self._limit += STEP
                self._say_limit()
        else:
            del self._lives[rank]
            return
        self._begin(rank)

    def _begin(self, rank: int | None) -> None:
        dies_at, dies = 0, float("inf")
        if self._killing:
            if self._chance.random() < 0.7:
                dies_at = self._chance.randrange(1, FAULTS_MAX)
            dies = time.monotonic() + self._chance.uniform(0.1, LIFE_MAX)
        place = self._places.each[-1 if rank is None else rank]
        field = Field(
            place, self._places.bucket, self.field.prefix, self.field.top, self.field.seed, self.field.nodes,
            self.field.large,
        )  # fmt: skip
        process = self._context.Process(
            target=nodes_rank.live, args=(field, rank, dies_at, self._chance.randrange(1 << 30)), daemon=True
        )
        process.start()
        self._lives[rank] = (process, dies)

    def _done(self, rank: int) -> set[int]:
        return {number for number, _, _ in seen(self.field.ledger(f"rank-{rank}"))}

    def _say_limit(self) -> None:
        half_made = self._top / "limit.new"
        half_made.write_text(str(self._limit))
        half_made.rename(self._top / "limit")

    def _harm_servers(self) -> None:
        server = self._places.server
        if server is not None and self._servers_at and self._report.kills >= self._servers_at[0]:
            self._servers_at.pop(0)
            server.kill()
            time.sleep(self._chance.uniform(*DOWN))
            server.restart()
            self._report.servers += 1
        if self._places.proxies and self._chance.random() < 0.005:
            proxy = self._chance.choice(self._places.proxies)
            decide, until = proxy.decide, time.monotonic() + self._chance.uniform(*DOWN)
            self._report.partitions += 1

            def away(method: str, path: str, number: int) -> int | None:
                return HANG_UP if time.monotonic() < until else decide(method, path, number)

            proxy.decide = away

    def _finish(self, ranks: Sequence[int | None]) -> None:
        """Nobody dies any more: every rank sees every group decided."""
        deadline = time.monotonic() + END_PATIENCE
        for rank in ranks:
            if rank in self._lives:
                process, _ = self._lives[rank]
                process.kill()
                process.join()
            self._begin(rank)
        while any(rank is not None for rank in self._lives):
            if time.monotonic() > deadline:
                raise OrdealError(f"after {END_PATIENCE:g} s there are groups that nobody has decided")
            for rank in [rank for rank in self._lives if rank is not None]:
                process, _ = self._lives[rank]
                if not process.is_alive():
                    self._ended(rank, process)
            time.sleep(0.02)
        (self._top / "stop").touch()
        process, _ = self._lives.pop(None)
        process.join()


class Examination:
    """What a machine with an empty store finds."""

    def __init__(self, field: Field, report: Report) -> None:
        self._field, self._report = field, report
        self._store = field.store("examination")
        self._directory = Path(field.top) / "out"

    def work(self) -> None:
        self._directory.mkdir()
        numbers = {self._field.group(number): number for number in range(self._field.limit())}
        self._report.groups = len(numbers)
        offered = {one.group: one for one in self._store.list(JOB)}
        said = self._said(numbers)
        for group, number in numbers.items():
            standing = self._store.standing(JOB, group)
            verdicts = said.get(number, set())
            if len(verdicts) > 1:
                self._report.problems.append(f"group {number} was seen decided in two ways: {sorted(verdicts)}")
            if standing.state in (GroupState.PARTIAL, GroupState.ABSENT):
                self._report.problems.append(f"group {number} is not decided")
            elif standing.state is GroupState.REPLICATED:
                self._compare(number, group, verdicts, offered.keys())
            elif standing.state is GroupState.ABORTED:
                self._report.aborted += 1
                if any(verdict == "commit" for verdict, _ in verdicts):
                    self._report.problems.append(f"group {number} was committed, and is aborted")
            else:
                self._report.deleted += 1
        if not self._report.committed:
            self._report.problems.append("no group was committed: the ordeal has shown nothing")
        self._report.problems += self._store.problems

    def _said(self, numbers: dict[str, int]) -> dict[int, set[tuple[str, str]]]:
        """What anybody ever saw of each group, besides that it was deleted."""
        found: dict[int, set[tuple[str, str]]] = {}
        for who in [*(f"rank-{rank}" for rank in range(self._field.nodes)), "janitor"]:
            for number, verdict, id_ in seen(self._field.ledger(who)):
                if verdict in ("commit", "abort"):
                    found.setdefault(number, set()).add((verdict, id_))
        return found

    def _compare(
        self, number: int, group: str, verdicts: set[tuple[str, str]], offered: Sequence[str] | object
    ) -> None:
        """A committed group has each byte of each rank, and is offered."""
        self._report.committed += 1
        problems = self._report.problems
        if ("abort", "-") in verdicts:
            problems.append(f"group {number} was aborted, and is committed")
        if group not in offered:
            problems.append(f"group {number} is committed, and not offered")
        wanted = {}
        for rank in range(self._field.nodes):
            wanted |= self._field.content(number, rank)
        try:
            found = self._read(group)
        except FuseCkptError as error:
            problems.append(f"group {number} cannot be read: {error}")
            return
        if found != wanted:
            problems.append(f"group {number} has other bytes than were saved: {sorted(found)}")

    def _read(self, group: str) -> dict[str, bytes]:
        found = {}
        for file in self._store.read(JOB, group).files:
            self._store.fetch_file(JOB, file, self._directory / "file")
            found[file.path] = (self._directory / "file").read_bytes()
            self._report.bytes_read += file.size
        return found


if __name__ == "__main__":
    raise SystemExit(main())
