"""Saves, deletes, restores and collects in several processes at once, each killed at random moments.

python -m tests.store.killed STORE 200      kills 200 times, and says what is wrong in the end
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.model import Checkpoint
from fuse_ckpt.store import Plan, Store
from tests.store.conftest import commit

WORKERS = 3
LONGEST = 0.4  # seconds that a worker lives


def work(root: Path, seed: int) -> None:
    """Do what comes to mind until killed; the same few contents are saved over and over, so that blobs are shared."""
    chance = random.Random(seed)
    job = f"job-{seed % WORKERS}"
    with Store.open(root) as store:
        for number in itertools.count():
            with contextlib.suppress(FuseCkptError):  # somebody else was faster
                step(store, chance, job, number)


def step(store: Store, chance: random.Random, job: str, number: int) -> None:
    what = chance.random()
    if what < 0.4:
        files = {name: b"content %d" % chance.randrange(6) for name in chance.sample("abc", 2)}
        commit(store, f"n{number % 5}", files, job=job)
        if chance.random() < 0.7:
            for file in store.layout.work(job).iterdir():
                file.unlink()
    elif what < 0.6:
        left = store.checkpoints()
        store.delete([one.id for one in chance.sample(left, min(len(left), 3))])
    elif what < 0.7:
        for one in store.trash()[:1]:
            store.restore(one.id)
    elif what < 0.75:
        store.recover()
    else:
        store.tidy(Plan(expired=tuple(chance.sample(trash := store.trash(), len(trash) // 2))), "a worker", 0.05)


def kill_all(root: Path, kills: int, seed: int = 0) -> list[str]:
    """What is wrong with the store at `root` after so many kills, a sentence each."""
    chance = random.Random(seed)
    seeds = itertools.count(seed * 10_000)
    running = [start(root, next(seeds)) for _ in range(WORKERS)]
    try:
        for _ in range(kills):
            time.sleep(chance.uniform(0.02, LONGEST) / WORKERS)
            victim = running.pop(0)
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
            running.append(start(root, next(seeds)))
    finally:
        for worker in running:
            worker.kill()
            worker.wait()
    return problems(root)


def start(root: Path, seed: int) -> subprocess.Popen[bytes]:
    """A worker that has begun: importing takes longer than it lives."""
    worker = subprocess.Popen(
        [sys.executable, "-c", f"import sys; from tests.store import killed; print(flush=True); "
         f"killed.work(killed.Path({str(root)!r}), {seed})"],
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert worker.stdout is not None
    worker.stdout.readline()
    worker.stdout.close()
    return worker


def problems(root: Path) -> list[str]:
    with Store.open(root) as store:
        found = store.verify()
        store.recover()
        store.tidy(Plan(expired=tuple(store.trash())), "the test", 1.0)
        found += store.verify() + store.problems
        named = Counter(digest for one in store.checkpoints() for digest in digests(store, one))
        there = {path.name for path in store.layout.blobs.glob("*/*")}
        found += [f"blob {digest} is named by nobody" for digest in there - set(named)]
        found += [f"blob {digest} is missing" for digest in set(named) - there]
        if store.totals().blobs != len(named):
            found.append(f"{store.totals().blobs} blobs are counted, {len(named)} are named")
        manifests = {path.stem for path in store.layout.manifests.iterdir()}
        found += [
            f"manifest {one} is not as it should be" for one in manifests ^ {one.id for one in store.checkpoints()}
        ]
        found += [f"{name} is left in tmp/" for name in os.listdir(store.layout.tmp)]
        found += [f"{len(store.trash())} are left in the trash"] * bool(store.trash())
    return found


def digests(store: Store, checkpoint: Checkpoint) -> set[str]:
    return {entry.digest for entry in store.manifest(checkpoint.id).entries}


if __name__ == "__main__":
    print("\n".join(kill_all(Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:]))) or "nothing is wrong")
