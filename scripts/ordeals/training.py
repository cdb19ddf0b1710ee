"""`scripts/nodes --training`: a real training on several machines that save one checkpoint together, and are killed.

Lives: the training begins on every machine, from the newest checkpoint that is replicated; uploaders, volume servers
and links die under it; at the end a daemon or a whole machine does, and the next life begins. Last, a machine with an
empty store reads all that was committed, and trains on: its losses must be those of a training that nothing harmed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.ordeals.mounts import run, workspace


@dataclass
class Report:
    """What a run came to. `rows`: the last listing of each machine, what they have in common."""

    seed: int
    network: str = ""
    kills: dict[str, int] = field(default_factory=dict)  # by kind
    lives: int = 0
    seconds: float = 0.0
    steps: int = 0
    committed: int = 0
    aborted: int = 0
    files_read: int = 0
    bytes_read: int = 0
    losses_compared: int = 0
    rows: list[dict[str, object]] = field(default_factory=list)
    resumed: int = 0
    problems: list[str] = field(default_factory=list)

    def killed(self, kind: str) -> None:
        self.kills[kind] = self.kills.get(kind, 0) + 1

    def text(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items())) or "none"
        return (
            f"{self.network}, seed {self.seed}: {sum(self.kills.values())} harms ({kinds}) in {self.lives} lives,"
            f" {self.seconds:.0f} s; {self.steps} steps; {self.committed} committed, {self.aborted} aborted;"
            f" {self.files_read} files ({self.bytes_read} bytes) read back; {self.losses_compared} losses compared,"
            f" {self.resumed} of them after the resume elsewhere; {len(self.problems)} problems"
        )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/nodes --training",
        description="Train on several machines that save one checkpoint together, and kill daemons, uploaders, volume"
        " servers, links and whole machines at random; exit with 1 where a group is both committed and aborted, a"
        " committed one lacks a byte, a complete one is not decided, or a resume elsewhere gives another loss.",
    )
    add = parser.add_argument
    add("--kills", type=int, default=200, metavar="N", help="in all (200)")
    add("--nodes", type=int, default=4, metavar="N", help="machines (4)")
    add("--seed", type=int, default=None, metavar="S", help="of all that is random (the time)")
    add("--directory", type=Path, metavar="DIR", help="the disk to do it on (the temporary directory)")
    add("--loopback", action="store_true", help="plain processes, where there could be network namespaces")
    add("--json", type=Path, metavar="FILE", help="write what came of it there")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    return run("nodes --training", training, arguments(given))


def training(chosen: argparse.Namespace) -> int:
    """Run it; 1 where there is a problem."""
    from scripts.ordeals.training_examined import Examination
    from scripts.ordeals.training_killed import Lives, field_of

    report = Report(chosen.seed if chosen.seed is not None else time.time_ns() % 10**6)
    began = time.monotonic()
    parent = chosen.directory or Path(tempfile.gettempdir())
    with workspace(parent, "training") as top, field_of(top, chosen.nodes, report, alone=not chosen.loopback) as there:
        try:
            Lives(there, chosen.kills, random.Random(report.seed), report).work()
            Examination(there, report).work()
        finally:
            for node in (*there.nodes, there.elsewhere):
                node.kill_all()
    report.seconds = round(time.monotonic() - began, 1)
    print(report.text())
    for problem in report.problems:
        print(f"  {problem}")
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(report)))
    return int(bool(report.problems))


if __name__ == "__main__":
    raise SystemExit(main())
