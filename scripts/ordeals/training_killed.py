"""The lives of the training of `scripts/nodes --training`, and the harm that comes to its machines."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuse_ckpt.model import Stage
from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Place
from scripts.ordeals.mounts import OrdealError
from scripts.ordeals.networks import network
from scripts.ordeals.training import Report
from scripts.ordeals.training_node import JOB, Node, meet
from tests.transfer.cluster import VOLUMES, Cluster, cluster
from tests.transfer.seaweed import BUCKET

GENTLE = ("uploader", "volume", "partition")  # what training lives through, each as likely
DEADLY = ("daemon", "daemon", "machine")
HARMS = (4, 12)  # gentle ones a life
EARLY = 0.15  # of lives, that the harm comes before training has begun
BEGINNING = 90.0  # seconds that it has to begin
BETWEEN = (0.1, 2.0)  # seconds between two
DOWN = (0.2, 3.0)  # seconds that a volume server or a link is away
LAST_MOMENT = (0.0, 3.0)  # seconds from the deadly one to the end of all others
ENDING = 8.0  # seconds that a run has to end by itself
CALM = 8  # steps of the life in which nobody dies
CALM_PATIENCE = 300.0  # seconds for it, and for all that is left to be copied


@dataclass
class Field:
    """The machines, the object store between them, and what became of each group as anybody ever saw it."""

    nodes: list[Node]
    elsewhere: Node
    server: Cluster
    top: Path
    seen: dict[str, set[Stage]] = field(default_factory=dict)

    def shared(self) -> SharedStore:
        return SharedStore(self.server.remote(patience=30.0), Place(BUCKET, "fuse-ckpt"), owner="examination")

    def look(self) -> None:
        """Note what each machine believes of each group."""
        for node in self.nodes:
            if not (node.store / "format").exists():
                continue
            with Store.open(node.store) as store:
                ids = [one.id for one in store.checkpoints(JOB)] if JOB in {one.name for one in store.jobs()} else []
                for replica in store.replicas(ids).values():
                    self.seen.setdefault(replica.group, set()).add(replica.stage)


@contextlib.contextmanager
def field_of(top: Path, count: int, report: Report, *, alone: bool) -> Iterator[Field]:
    with network(count + 1, alone=alone) as (report.network, host, links), cluster(top / "seaweed", host) as server:
        machines = [Node(top, number, link, server) for number, link in enumerate(links)]
        for machine in machines[:-1]:
            machine.attach()
        yield Field(machines[:-1], machines[-1], server, top)


class Lives:
    """Begins the training again and again, and kills."""

    def __init__(self, field: Field, kills: int, chance: random.Random, report: Report) -> None:
        self._field, self._kills, self._chance, self._report = field, kills, chance, report
        self._later: list[tuple[float, Node | int]] = []  # when a link is to be mended, or a volume server restarted

    def work(self) -> None:
        while sum(self._report.kills.values()) < self._kills:
            self._life()
        self._calm()

    def _life(self) -> None:
        self._begin(steps=1 << 30, drain=False)
        if self._chance.random() >= EARLY:
            self._await_training()
        for _ in range(self._chance.randint(*HARMS)):
            self._pass_time(self._chance.uniform(*BETWEEN))
            if self._over():
                break
            self._harm(self._chance.choice(GENTLE))
        self._kill(self._chance.choice(DEADLY))
        self._pass_time(self._chance.uniform(*LAST_MOMENT))
        self._restore()
        self._end()
        self._field.look()

    def _await_training(self) -> None:
        """Until every rank trains, or one has ended."""
        until = time.monotonic() + BEGINNING
        while time.monotonic() < until and not self._over():
            if all(node.has_begun(self._attempt) for node in self._field.nodes):
                return
            self._pass_time(0.2)

    @property
    def _attempt(self) -> str:
        return f"life{self._report.lives}"

    def _calm(self) -> None:
        """A life without harm, and all that is left is committed and copied."""
        done = max((int(row["step"]) for node in self._field.nodes for row in node.listed() if row["step"]), default=0)
        self._begin(steps=done + CALM, drain=True)
        for node in self._field.nodes:
            if node.wait(CALM_PATIENCE) != 0:
                raise OrdealError(f"node {node.number}: a run that nobody harmed failed: {node.last_words()}")
        for node in self._field.nodes * 2:
            node.cli("storage", "sync", "lake")  # it says so where something is left, which the examination sees
        self._field.look()

    def _begin(self, *, steps: int, drain: bool) -> None:
        self._report.lives += 1
        newest = self._newest()
        first = self._field.nodes[0].link
        meeting = meet(first.address, _free_port())
        for node in self._field.nodes:
            node.start(len(self._field.nodes), meeting, self._attempt, steps, newest, drain=drain)

    def _newest(self) -> str | None:
        """The newest that a machine knows to be replicated: all of them can have it."""
        rows = [
            row for node in self._field.nodes for row in node.listed() if row["replicated"].startswith("replicated")
        ]
        return max(rows, key=lambda row: (row["step"], row["id"]))["id"] if rows else None

    def _over(self) -> bool:
        return any(node.code is not None for node in self._field.nodes)

    def _end(self) -> None:
        for node in self._field.nodes:
            node.end(ENDING)

    # -- harm ---------------------------------------------------------------------------------------------------------

    def _harm(self, kind: str) -> None:
        node = self._chance.choice(self._field.nodes)
        away = time.monotonic() + self._chance.uniform(*DOWN)
        if kind == "uploader":
            if not node.kill("uploader"):
                return
        elif kind == "volume":
            if any(isinstance(what, int) for _, what in self._later):
                return  # two copies are kept: one server at a time
            number = self._chance.randrange(VOLUMES)
            self._field.server.kill_volume(number)
            self._later.append((away, number))
        else:
            node.link.cut()
            self._later.append((away, node))
        self._report.killed(kind)

    def _kill(self, kind: str) -> None:
        node = self._chance.choice(self._field.nodes)
        if kind == "machine":
            node.kill_all()
        elif not node.kill("daemon"):
            return
        self._report.killed(kind)

    def _pass_time(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._restore(time.monotonic())
            time.sleep(0.05)

    def _restore(self, now: float = float("inf")) -> None:
        """Bring back what has been away for long enough."""
        for one in [one for one in self._later if one[0] <= now]:
            self._later.remove(one)
            if isinstance(one[1], int):
                self._field.server.restart_volume(one[1])
            else:
                one[1].link.mend()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port
