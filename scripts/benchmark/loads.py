"""Cases that read: loads, and what asks for names and attributes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from scripts.benchmark.machine import BLOCK
from scripts.benchmark.payload import Payload, State, stamp, touch
from scripts.benchmark.places import Place
from scripts.benchmark.registry import Registry, Trial

LOADS = Registry()
WARM = "≥ 0.95 of plain"
COLD = "≥ 0.9 of plain"


@LOADS.case("load", lambda sizes: sizes.state, goal=WARM, reads=True, cold=COLD)
def load(payload: Payload, place: Place) -> Trial:
    """torch.load"""
    path = _saved(payload, place, "load.pt")
    return Trial(lambda: torch.load(path))


@LOADS.case("load-mmap", lambda sizes: sizes.state, goal=WARM, reads=True, cold=COLD)
def load_mmap(payload: Payload, place: Place) -> Trial:
    """torch.load(mmap=True), every byte touched"""
    path = _saved(payload, place, "load.pt")
    return Trial(lambda: touch(torch.load(path, mmap=True)))


@LOADS.case("load-safetensors", lambda sizes: sizes.state, goal=WARM, reads=True, cold=COLD)
def load_safetensors(payload: Payload, place: Place) -> Trial:
    """safetensors load_file, every byte touched"""
    path = _saved(payload, place, "load.safetensors")
    return Trial(lambda: touch(load_file(path)))


@LOADS.case("stat", lambda sizes: sizes.stats, unit="operations", goal="by the kernel's cache")
def stat(payload: Payload, place: Place) -> Trial:
    """stat of a known name, 100,000 times"""
    path = place.path / "known.bin"
    path.write_bytes(payload.block)

    def run() -> None:
        for _ in range(payload.sizes.stats):
            os.stat(path)

    return Trial(run, finish=path.unlink)


@LOADS.case("ls", lambda sizes: sizes.listed, unit="operations", goal="≤ 1 s", cold="≤ 1 s")
def listing(payload: Payload, place: Place) -> Trial:
    """ls -l of a directory with 10,000 entries"""
    directory = place.path / "logs"  # a name that starts no checkpoint: 10,000 commits would be another case
    directory.mkdir()
    for number in range(payload.sizes.listed):
        (directory / f"entry_{number}").touch()
    command = ["ls", "-l", str(directory)]
    return Trial(
        lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), finish=lambda: shutil.rmtree(directory)
    )


def _saved(payload: Payload, place: Place, name: str) -> Path:
    """Where the state dict is to be read; it is saved once, and stays: the read view shows its first checkpoint.

    It is read once, so that all places have it in the page cache in like pieces: what page faults have brought there
    after the caches were dropped is mapped three times as slowly as what read() has.
    """
    path = place.path / name
    if place.writable and not path.exists():
        _save(stamp(payload.state()), path)
    with open(place.file(name), "rb", buffering=0) as file:
        while file.read(BLOCK):
            pass
    return place.file(name)


def _save(state: State, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
