"""A store with very many checkpoints: how long its commands take, and what its daemon needs."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import closing
from pathlib import Path

from fuse_ckpt.model import Entry, Kind, Metadata, NewCheckpoint, Shape, Unit
from fuse_ckpt.store import Store
from scripts.benchmark.figures import Figure
from scripts.benchmark.machine import resident
from scripts.benchmark.mounts import PROGRAM, Ours
from scripts.benchmark.report import progress
from scripts.benchmark.sizes import MIB

LISTED, LISTED_ROWS = "listed", 1_000
VIEWED, VIEWED_ROWS = "viewed", 10_000
OTHER_ROWS = 1_000  # of each other job
ROUNDS = 5
TOGETHER = 100  # files at a time: no training leaves thousands of checkpoints in one directory
MEMORY_GOAL = "≤ 80 MiB after 10,000"


def measure(workspace: Path, count: int, commits: int) -> list[Figure]:
    """Fill a store with `count` checkpoints and measure it; then commit `commits` small ones through a mount."""
    root = workspace / "index-store"
    filled = _fill(root, count)
    return [
        Figure("publish a checkpoint", "ms", [filled / count * 1000]),
        *_commands(root, count),
        Figure(f"mount, {count:,} in the index", "s", [_mount_time(root, workspace) for _ in range(ROUNDS)], "≤ 1 s"),
        *_viewing(root, workspace),
        *_committing(root, workspace, commits),
    ]


def _fill(root: Path, count: int) -> float:
    """Publish `count` checkpoints, one transaction each; return the seconds that it took."""
    small = root.with_suffix(".blob")
    small.write_bytes(b"a checkpoint")
    start = time.perf_counter()
    with Store.open(root) as store, store.committing():
        adopted = store.adopt(small)
        entry = Entry("model.pt", Kind.FILE, 0o644, time.time_ns(), adopted.size, adopted.digest)
        for job in {_job_of(number, count) for number in range(count)}:
            store.ensure_job(job, time.time_ns())
        for number in range(count):
            if number % OTHER_ROWS == 0:
                progress(f"index: {number:,} of {count:,}")
            store.publish(_checkpoint(_job_of(number, count), number, entry))
    return time.perf_counter() - start


def _job_of(number: int, count: int) -> str:
    """The listed job's rows lie scattered among all the others."""
    distance = max(2, count // LISTED_ROWS)
    if number % distance == 0 and number // distance < LISTED_ROWS:
        return LISTED
    return VIEWED if number < VIEWED_ROWS else f"job-{number // OTHER_ROWS}"


def _checkpoint(job: str, number: int, entry: Entry) -> NewCheckpoint:
    metadata = Metadata(step=number, train_loss=1 / (number + 1), model="GPT2LMHeadModel", weights=True)
    unit = Unit(f"checkpoint-{number}", Shape.DIRECTORY)
    return NewCheckpoint(job, unit, "0", time.time_ns(), metadata, (entry,))


def _commands(root: Path, count: int) -> list[Figure]:
    """What only reads the index, as whole processes."""
    with Store.open(root) as store:
        listed = store.checkpoints(LISTED)
        store.tag(listed[0].id, "tagged")
    rows = f"{len(listed):,} rows of {count:,}"
    asked = {f"training checkpoints {LISTED}{options}": rows for options in ("", " --json")}
    references = (f"{VIEWED}:latest", f"{VIEWED}:best", "tagged", listed[-1].id[-8:], f"{LISTED}/{listed[0].name}@1")
    asked |= {f"checkpoint inspect {reference}": f"of {count:,}" for reference in references}
    lists = ("--limit 50", "--tag tagged", "--status deleted", "--name nothing* --limit 9", "--sort step --limit 9")
    asked |= {f"checkpoint list {options}": f"of {count:,}" for options in lists}
    asked |= dict.fromkeys(("training list", f"training inspect {VIEWED}", "stats --json"), f"of {count:,}")
    command = [*PROGRAM, "--store", str(root)]
    return [
        Figure(f"{words}, {what}", "s", _processes([*command, *words.split()]), "≤ 0.4 s")
        for words, what in asked.items()
    ]


def _processes(command: list[str]) -> list[float]:
    """Seconds of whole processes, after one that warms the caches."""
    taken = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - start)
    return taken[1:]


def _mount_time(root: Path, workspace: Path) -> float:
    """Seconds that `mount` takes, as a whole process and until its daemon answers."""
    mountpoint = workspace / "index-mounted"
    mountpoint.mkdir(exist_ok=True)
    command = [*PROGRAM, "--store", str(root)]
    start = time.perf_counter()
    subprocess.run([*command, "mount", LISTED, str(mountpoint)], check=True, cwd="/", stdout=subprocess.DEVNULL)
    try:
        return time.perf_counter() - start
    finally:
        subprocess.run([*command, "umount", str(mountpoint)], check=True, cwd="/")


def _viewing(root: Path, workspace: Path) -> list[Figure]:
    with closing(Ours(root, VIEWED, workspace / "index-viewed")) as mounted:
        started = resident(mounted.pid)
        start = time.perf_counter()
        seen = 0
        for entry in os.scandir(mounted.path / ".checkpoints" / "by-id"):
            if entry.is_dir():
                os.stat(f"{entry.path}/model.pt")
                seen += 1
        taken = time.perf_counter() - start
        return [
            Figure("daemon memory when mounted", "MiB", [started / MIB]),
            Figure(f"list {seen:,} checkpoints in the read view, a file of each", "s", [taken]),
            Figure(f"daemon memory, {seen:,} checkpoints seen", "MiB", [resident(mounted.pid) / MIB], MEMORY_GOAL),
        ]


def _committing(root: Path, workspace: Path, commits: int) -> list[Figure]:
    with closing(Ours(root, "committed", workspace / "index-committed")) as mounted:
        progress(f"index: {commits:,} commits through the mount")
        start = time.perf_counter()
        for first in range(0, commits, TOGETHER):
            _commit_some(mounted, range(first, min(first + TOGETHER, commits)))
        taken = time.perf_counter() - start
        done = len(mounted.store.checkpoints("committed"))
        return [
            Figure(f"commit {done:,} small files through a mount", "s", [taken]),
            Figure(f"daemon memory, {done:,} checkpoints committed", "MiB", [resident(mounted.pid) / MIB], MEMORY_GOAL),
        ]


def _commit_some(mounted: Ours, numbers: range) -> None:
    paths = [mounted.path / f"step_{number}.bin" for number in numbers]
    for number, path in zip(numbers, paths, strict=True):
        path.write_bytes(number.to_bytes(8, "big"))
    mounted.settle()
    for path in paths:
        path.unlink()
