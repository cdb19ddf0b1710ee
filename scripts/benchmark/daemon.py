"""What the daemon pays for a save, and how long a commit takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from blake3 import blake3

from fuse_ckpt.store import Store
from scripts.benchmark.figures import Figure
from scripts.benchmark.machine import Usage, disk_written, resident
from scripts.benchmark.mounts import SETTLE_PATIENCE, Ours, wait_until
from scripts.benchmark.payload import State, stamp
from scripts.benchmark.sizes import GIB, MIB

NAME = "daemon.pt"
LOOK = 0.005  # seconds between two looks for the commit
HASHES = 5  # rounds


@dataclass(frozen=True)
class _Save:
    """One save that was committed. `disk`: bytes that the whole disk wrote meanwhile."""

    size: int
    latency: float
    daemon: Usage
    writer: Usage
    disk: int | None


def committed_saves(mounted: Ours, state: State, rounds: int) -> list[Figure]:
    """Figures of saves that are committed, of bytes that the store does not have yet."""
    saves = [_save_and_commit(mounted, stamp(state)) for _ in range(rounds)]
    disk = [save.disk / save.size for save in saves if save.disk is not None]
    return [
        Figure("close() until available", "s", [save.latency for save in saves], "≤ 2 s for 1 GiB"),
        Figure("daemon CPU per GiB, commit included", "s", [save.daemon.cpu / save.size * GIB for save in saves]),
        Figure("read by the daemon per byte", "", [save.daemon.read / save.size for save in saves], "1"),
        # Through a daemon both dirty a page, and the disk sees it once; the disk's own counter sees everybody.
        Figure("dirtied by the daemon per byte", "", [save.daemon.written / save.size for save in saves]),
        Figure("dirtied by the writer per byte", "", [save.writer.written / save.size for save in saves]),
        *([Figure("written by the whole disk per byte", "", disk, "≤ 1.01 on an idle machine")] if disk else []),
        Figure("daemon memory after all this", "MiB", [resident(mounted.pid) / MIB]),
    ]


def _save_and_commit(mounted: Ours, state: State) -> _Save:
    path = mounted.path / NAME
    mounted.settle()
    os.sync()
    before = [Usage.of(mounted.pid), Usage.of(os.getpid())]
    disk_before = disk_written(mounted.store.layout.root)
    known = len(mounted.store.checkpoints(mounted.job))
    generation = mounted.store.generation()
    torch.save(state, path)
    closed = time.perf_counter()

    def is_available() -> bool:
        # The generation first: it costs nothing, and the daemon wants the CPU.
        changed = mounted.store.generation() != generation
        return changed and len(mounted.store.checkpoints(mounted.job)) > known

    wait_until(f"{NAME} is committed", is_available, SETTLE_PATIENCE, poll=LOOK)
    latency = time.perf_counter() - closed
    mounted.settle()
    os.sync()
    after = [Usage.of(mounted.pid), Usage.of(os.getpid())]
    disk_after = disk_written(mounted.store.layout.root)
    disk = None if disk_before is None or disk_after is None else disk_after - disk_before
    size = path.stat().st_size
    path.unlink()
    return _Save(size, latency, after[0].since(before[0]), after[1].since(before[1]), disk)


def uncommitted_saves(mounted: Ours, state: State, rounds: int) -> list[Figure]:
    """What the saves alone cost a daemon that is mounted with a long quiet period."""
    directory = mounted.path / "held"  # no flat file: that one is committed after 0.2 s, whatever the quiet period
    directory.mkdir()
    costs = []
    for number in range(rounds):
        path = directory / f"part_{number}.pt"  # no overwriting: that would seal what is there
        before = Usage.of(mounted.pid).cpu
        torch.save(state, path)
        costs.append((Usage.of(mounted.pid).cpu - before) / path.stat().st_size * GIB)
    return [Figure("daemon CPU per GiB, commit excluded", "s", costs, "≤ 0.02 s")]


def hashing(store: Store, state: State) -> list[Figure]:
    """How fast a file is adopted, whose bytes are on the disk already, against BLAKE3 over the same bytes in memory."""
    source = store.layout.root.with_name("hashed.pt")
    torch.save(stamp(state), source)
    content = source.read_bytes()
    os.sync()
    ours, pure = [], []
    with store.committing():
        store.adopt(source)
        for _ in range(HASHES):
            ours.append(len(content) / GIB / _seconds(lambda: store.adopt(source)))
            pure.append(len(content) / GIB / _seconds(lambda: blake3(content).digest()))
    return [
        Figure("hash and link", "GiB/s", ours),
        Figure("BLAKE3 itself, one thread", "GiB/s", pure),
        Figure("hash and link, of BLAKE3's speed", "", _ratios(ours, pure), "≥ 0.8"),
    ]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=True)]
