"""Cases that save."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

from scripts.benchmark.payload import Payload, shard_names, stamp
from scripts.benchmark.places import Place
from scripts.benchmark.registry import Registry, Trial
from scripts.benchmark.sizes import SHARDS, SMALL_SIZE

SAVES = Registry()
GOAL = "≥ 0.95 of plain"


@SAVES.case("save", lambda sizes: sizes.state, goal=GOAL)
def save(payload: Payload, place: Place) -> Trial:
    """torch.save of the state dict, close() included"""
    path, state = place.path / "save.pt", payload.state()
    return Trial(lambda: torch.save(state, path), path.unlink)


@SAVES.case("save-fsync", lambda sizes: sizes.state, goal=GOAL)
def save_fsync(payload: Payload, place: Place) -> Trial:
    """torch.save to an open file, then fsync"""
    path, state = place.path / "synced.pt", payload.state()

    def run() -> None:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    return Trial(run, path.unlink)


@SAVES.case("save-4x", lambda sizes: SHARDS * sizes.shard, goal=GOAL)
def save_by_four(payload: Payload, place: Place) -> Trial:
    """8 state dicts saved by 4 processes at once"""
    paths = [place.path / name for name in shard_names()]
    return Trial(lambda: payload.workers.save(paths), lambda: _unlink(paths))


@SAVES.case("resave", lambda sizes: sizes.resaved)
def resave(payload: Payload, place: Place) -> Trial:
    """torch.save over a file that is committed (each save is another checkpoint)"""
    path, state = place.path / "resaved.pt", payload.state(payload.sizes.resaved)

    def differ() -> None:
        stamp(state)

    differ()
    torch.save(state, path)
    differ()
    return Trial(lambda: torch.save(state, path), differ, path.unlink)


@SAVES.case("save-safetensors", lambda sizes: sizes.state, goal=GOAL)
def save_safetensors(payload: Payload, place: Place) -> Trial:
    """safetensors save_file of the state dict"""
    path, state = place.path / "save.safetensors", payload.state()
    return Trial(lambda: save_file(state, path), path.unlink)


@SAVES.case("files-300", lambda sizes: sizes.files * sizes.file, goal="≥ 0.8 of plain")
def many_files(payload: Payload, place: Place) -> Trial:
    """300 files of 2 MiB, into one directory"""
    return _write_files(place.path / "step_300", payload.sizes.files, payload.block)


@SAVES.case("small", lambda sizes: sizes.small_files, unit="operations", goal="≥ 0.83 of example")
def small_files(payload: Payload, place: Place) -> Trial:
    """create, write and close of a small file, 1000 times"""
    return _write_files(place.path / "step_1000", payload.sizes.small_files, payload.block[:SMALL_SIZE])


def _write_files(directory: Path, count: int, block: bytes) -> Trial:
    names = [str(directory / f"shard_{number}.bin") for number in range(count)]
    directory.mkdir()

    def run() -> None:
        for name in names:
            with open(name, "wb", buffering=0) as file:
                file.write(block)

    def clean() -> None:
        _unlink(map(Path, names))

    return Trial(run, clean, lambda: shutil.rmtree(directory))


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink()
