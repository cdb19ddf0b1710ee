"""`scripts/ordeal`: 64 writers in 8 processes in one job, four jobs mounted at once, two more in pid namespaces of
their own, and everything that reads and deletes beside them. No deadlock, no lost update, no reader that sees half a
commit."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fuse_ckpt.model import State
from fuse_ckpt.store import Store
from scripts.mountpoints import WITHOUT_MOUNTS
from scripts.ordeals.mounts import PROGRAM, Mounted, OrdealError, end_process, environment, run, workspace
from scripts.ordeals.onlookers import Onlookers

CROWD, PROCESSES = "crowd", 8
OTHERS = ("other-1", "other-2", "other-3")
APART = ("apart-1", "apart-2")  # in pid and mount namespaces of their own
GRACE = 300.0  # seconds in which the writers end after their time


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/ordeal", description=" ".join((__doc__ or "").split()))
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, metavar="M", help="how long the writers write (10)")
    add("--writers", type=int, default=64, metavar="N", help=f"in {PROCESSES} processes of the first job (64)")
    add("--pause", type=float, default=3.0, metavar="S", help="seconds between two saves of a writer, on average (3)")
    add("--seed", type=int, default=None, metavar="S", help="of all that is random (the time)")
    add("--directory", type=Path, metavar="DIR", help="the disk to do it on (the temporary directory)")
    add("--json", type=Path, metavar="FILE", help="write what came of it there")
    return parser.parse_args(given)


def main() -> int:
    return run("ordeal", ordeal, arguments())


def ordeal(chosen: argparse.Namespace) -> int:
    """Run it; 1 where anything was not as it must be."""
    seed = chosen.seed if chosen.seed is not None else time.time_ns() % 10**6
    with workspace(chosen.directory, "ordeal") as top, ExitStack() as stack:
        found = endure(top, stack, random.Random(seed), chosen)
    found |= {"seed": seed, "minutes": chosen.minutes}
    print(", ".join(f"{name} {value}" for name, value in found.items() if name != "problems"))
    for problem in found["problems"]:
        print(f"problem: {problem}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["problems"] else 0


def endure(top: Path, stack: ExitStack, chance: random.Random, chosen: argparse.Namespace) -> dict[str, Any]:
    """Mount, write, look, unmount, and count."""
    root = top / "store"
    jobs = [Mounted(root, name, top / name) for name in (CROWD, *OTHERS)]
    for job in jobs:
        stack.callback(job.kill)
        job.mount()
    seconds = chosen.minutes * 60
    writers: dict[Path, subprocess.Popen[bytes]] = {}
    stack.callback(lambda: [end_process(one, 5.0) for one in writers.values()])
    for number in range(PROCESSES):
        count = chosen.writers // PROCESSES
        _start(writers, top, jobs[0].path, f"{CROWD}-{number}", count, chance, seconds, chosen.pause)
    for job in jobs[1:]:
        _start(writers, top, job.path, job.job, 4, chance, seconds, chosen.pause)
    for name in APART if os.geteuid() == 0 and shutil.which("unshare") else ():
        _start_apart(writers, top, root, name, chance, seconds, chosen.pause)
    onlookers = Onlookers(top, jobs, chance.randrange(1 << 30))
    onlookers.start()
    _wait_for_all(writers, seconds + GRACE, onlookers.problems)
    onlookers.end()
    problems = onlookers.problems
    for job in jobs:
        try:
            job.umount()
        except (OrdealError, subprocess.TimeoutExpired) as error:
            problems.append(str(error))
    saves, missing = _compare(root, writers)
    problems += missing + _held_locks(root)
    with Store.open(root) as store:
        problems += store.verify()
        total = len(store.checkpoints())
    return {"saves": saves, "checkpoints": total, **onlookers.counts, "problems": problems}


def _start(
    writers: dict[Path, subprocess.Popen[bytes]],
    top: Path,
    path: Path,
    name: str,
    count: int,
    chance: random.Random,
    seconds: float,
    pause: float,
    before: Sequence[str] = (),
) -> None:
    words = top / f"{name}.words"
    crowd = [sys.executable, "-m", "scripts.ordeals.crowd", str(path), name, str(count)]
    command = [*before, *crowd, str(chance.randrange(1 << 30)), str(seconds), str(pause)]
    with words.open("wb") as out, words.with_suffix(".err").open("wb") as err:
        writers[words] = subprocess.Popen(command, stdout=out, stderr=err, cwd="/", env=environment())


def _start_apart(
    writers: dict[Path, subprocess.Popen[bytes]],
    top: Path,
    root: Path,
    name: str,
    chance: random.Random,
    seconds: float,
    pause: float,
) -> None:
    """A `training run` that is process 1 of a namespace of its own, as in a container."""
    unshare = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
    before = [*unshare, *WITHOUT_MOUNTS, *PROGRAM, "--store", str(root), "training", "run", name, "--"]
    _start(writers, top, root / "mounts" / name / "output-checkpoint", name, 4, chance, seconds, pause, before)


def _wait_for_all(writers: dict[Path, subprocess.Popen[bytes]], patience: float, problems: list[str]) -> None:
    deadline = time.monotonic() + patience
    for words, process in writers.items():
        try:
            code = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            problems.append(f"the writers of {words.stem} do not end")
            continue
        if code != 0:
            said = words.with_suffix(".err").read_text(errors="replace").strip().splitlines()[-1:]
            problems.append(f"the writers of {words.stem} ended with {code}: {' '.join(said)}")


def _compare(root: Path, words: Iterable[Path]) -> tuple[int, list[str]]:
    """Every file that a writer closed is in a checkpoint: how many there were, and a sentence for each that is not."""
    with Store.open(root) as store:
        kept = {path.name for path in store.layout.blobs.glob("*/*")}
        for one in store.checkpoints(states=set(State)):
            path = store.layout.manifest(one.id)  # of deleted ones too, whose bytes may have been collected
            told = json.loads(path.read_bytes()) if path.exists() else {"entries": []}
            kept |= {entry.get("digest", "") for entry in told["entries"]}
    saves, missing = 0, []
    for log in words:
        for line in log.read_text().splitlines():
            word, path_name, *digest = line.split(" ")
            if word == "done":
                saves += 1
                if digest[0] not in kept:
                    missing.append(f"{Path(path_name).name} was closed with {digest[0]}, which is in no checkpoint")
    return saves, missing


def _held_locks(root: Path) -> list[str]:
    """Locks that somebody still holds, although everybody has gone."""
    held = []
    for path in (root / "locks").iterdir():
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(f"the lock {path.name} is still held")
    return held


if __name__ == "__main__":
    sys.exit(main())
