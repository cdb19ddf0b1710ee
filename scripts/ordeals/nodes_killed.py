"""The processes of `scripts/nodes`, the object store that they share, and the harm that comes to all of them."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from msgspec.structs import replace

from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.transfer import Place, Remote, probe
from scripts.ordeals import nodes_rank
from scripts.ordeals.mounts import OrdealError
from scripts.ordeals.nodes_examined import Report
from scripts.ordeals.nodes_rank import NS, Field, seen
from tests.transfer.proxy import HANG_UP, LOST, Proxy, before
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed, running

FAULTS_MAX = 20  # fault points that a life reaches at most, where it dies at one
LIFE_MAX = 1.5  # seconds that a life lasts at most
STEP = 10  # groups that are added where all are decided, and more kills are wanted
END_PATIENCE = 240.0  # seconds, for all to be decided when nobody is killed any more
DOWN = (0.2, 1.5)  # seconds that a server or a way to it is away


@dataclass
class Places:
    """Where the object store is: to the examination, and to each rank and the janitor (last)."""

    direct: Connection
    bucket: str
    each: list[Connection]
    server: Seaweed | None
    proxies: list[Proxy]


@contextlib.contextmanager
def places(top: Path, chosen: argparse.Namespace, report: Report) -> Iterator[Places]:
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
        # Else each of them takes a second to begin.
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
        kills: int = self._chosen.kills
        return self._report.kills < kills

    def _tend(self, rank: int | None) -> None:
        """See that the process lives, and whether it is time that it does not."""
        life = self._lives.get(rank)
        if life is None:
            self._begin(rank)
            return
        process, span = life
        if not process.is_alive():
            self._ended(rank, process)
        elif time.time() > self.field.began(rank) + span:
            process.kill()
            process.join()
            self._report.kills += 1
            self._begin(rank)

    def _ended(self, rank: int | None, process: ForkServerProcess) -> None:
        process.join()
        if process.exitcode == -9:
            self._report.kills += 1
            self._report.at_fault_points += 1
        elif process.exitcode != 0:
            raise OrdealError(f"rank {rank} ended with {process.exitcode}: its words are above")
        elif rank is not None and self._killing:
            if self._limit < len(self._done(rank)) + STEP:
                self._limit += STEP
                self._say_limit()
        else:
            del self._lives[rank]
            return
        self._begin(rank)

    def _begin(self, rank: int | None) -> None:
        dies_at, span = 0, float("inf")
        if self._killing:
            if self._chance.random() < 0.7:
                dies_at = self._chance.randrange(1, FAULTS_MAX)
            span = self._chance.uniform(0.0, LIFE_MAX)
        place = self._places.each[-1 if rank is None else rank]
        field = replace(self.field, connection=place)
        process = self._context.Process(
            target=nodes_rank.live, args=(field, rank, dies_at, self._chance.randrange(1 << 30)), daemon=True
        )
        self.field.marker(rank).unlink(missing_ok=True)
        process.start()
        self._lives[rank] = (process, span)

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
