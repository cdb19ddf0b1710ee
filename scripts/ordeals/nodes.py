"""`scripts/nodes`: machines that share an object store, each killed at random, again and again; nothing may be lost.

Every rank is a process that saves its part of each group; a janitor aborts, deletes and reaps beside them. At the end a
machine with an empty store reads all that is offered, and every decision that anybody ever saw must be the one there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.ordeals.mounts import run, workspace


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
    # Here, for each process that this one begins reads this module again, and needs none of it.
    from scripts.ordeals.nodes_examined import Examination, Report
    from scripts.ordeals.nodes_killed import Ordeal, places

    report = Report(chosen.seed if chosen.seed is not None else time.time_ns() % 10**6)
    parent = chosen.directory or Path(tempfile.gettempdir())
    with workspace(parent, "nodes") as top, places(top, chosen, report) as there:
        ordeal = Ordeal(top, chosen, report, there)
        ordeal.work()
        Examination(ordeal.field, report).work()
    print(report.text())
    for problem in report.problems:
        print(f"  {problem}")
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(report)))
    return int(bool(report.problems))


if __name__ == "__main__":
    raise SystemExit(main())
