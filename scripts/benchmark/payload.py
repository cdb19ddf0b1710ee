"""What is saved: state dicts of random floats, every byte touched once, so that no save pays for its own pages."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from scripts.benchmark.sizes import SHARD_TENSORS, SHARDS, TENSORS, Sizes

State = dict[str, torch.Tensor]
PROCESSES = 4

_stamps = itertools.count(os.getpid() << 20)
_shard: State = {}  # of this worker process


def make_state(size: int, tensors: int) -> State:
    """`tensors` float32 tensors, together about `size` bytes; each has an even number of floats."""
    floats = max(2, size // tensors // 8 * 2)
    return {f"layer.{number}.weight": torch.rand(floats) for number in range(tensors)}


def stamp(state: State) -> State:
    """Make `state` differ from every other save of this run: equal files are kept once, and linked once."""
    state["layer.0.weight"].view(torch.int32)[0] = next(_stamps) & 0x7FFFFFFF
    return state


def touch(state: State) -> int:
    """Read every byte of `state`."""
    return sum(int(tensor.view(torch.int64).sum()) for tensor in state.values())


class Workers:
    """Processes that save at the same time, each with a state dict of its own."""

    def __init__(self, size: int) -> None:
        # Not fork: torch has threads by now.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(PROCESSES, context, _prepare_worker, (size,))

    def save(self, paths: Iterable[Path]) -> None:
        """Save one state dict to each of `paths`; returns when all are closed."""
        list(self._pool.map(_save_shard, paths))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class Payload:
    """All that the cases save; each part is made when it is first wanted."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._states: dict[int, State] = {}
        self._workers: Workers | None = None
        self.block = os.urandom(sizes.file)

    def state(self, size: int | None = None) -> State:
        """The state dict of `size` bytes (default: the large one)."""
        size = size or self.sizes.state
        if size not in self._states:
            self._states[size] = make_state(size, TENSORS)
        return self._states[size]

    @property
    def workers(self) -> Workers:
        if self._workers is None:
            self._workers = Workers(self.sizes.shard)
        return self._workers

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()


def shard_names() -> list[str]:
    """A file, and so a checkpoint, for each of the state dicts that are saved at once."""
    return [f"part_{letter}.pt" for letter in "abcdefgh"[:SHARDS]]


def _prepare_worker(size: int) -> None:
    _shard.update(make_state(size, SHARD_TENSORS))
    torch.set_num_threads(1)


def _save_shard(path: Path) -> None:
    torch.save(_shard, path)
