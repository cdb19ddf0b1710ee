"""What a program reads from its beginning on is read ahead of it, where the kernel moves the data."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest
import torch

from fuse_ckpt.vfs.readahead import cached, window_of
from tests.mount.harness import Mount, wait_until
from tests.semantics.parity import opened

pytestmark = [pytest.mark.mount, pytest.mark.once]

MIB = 1 << 20
SIZE = 96 * MIB


def mapped(path: Path) -> torch.Tensor:
    """The file, mapped; its descriptor is closed, as safetensors' loaders do."""
    return torch.from_file(str(path), shared=False, size=SIZE, dtype=torch.uint8)


def cold_blob(mounted: Mount, name: str) -> tuple[Path, Path]:
    """Save and commit a file; return its path in the read view, and the blob, of which nothing is in memory."""
    path = mounted.path / name
    path.write_bytes(os.urandom(MIB) * (SIZE // MIB))
    (one,) = mounted.wait_for(name)
    path.unlink()
    (found,) = json.loads((mounted.by_id(one.id).with_suffix(".json")).read_text())["entries"]
    digest = found["digest"]
    blob = mounted.store / "blobs" / digest[:2] / digest
    make_cold(blob)
    return mounted.by_id(one) / name, blob


def make_cold(path: Path) -> None:
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)

        def is_cold() -> bool:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            return cached(fd, 0, SIZE) == 0

        wait_until("nothing of it is in memory", is_cold)


def in_memory(blob: Path, part: range) -> int:
    """How many bytes of a part of a file are in memory."""
    with opened(blob, os.O_RDONLY) as fd:
        return cached(fd, part.start, len(part)) * mmap.PAGESIZE


def read(mapping: torch.Tensor, start: int, stop: int) -> None:
    mapping[start : stop : mmap.PAGESIZE].sum()


def read_on(mapping: torch.Tensor, blob: Path) -> None:
    """Read, a MiB at every third look, until what lies further ahead than the kernel reads by itself is in memory."""
    last = SIZE - 32 * MIB
    steps = iter(start for start in range(0, last, MIB) for _ in range(3))

    def is_ahead() -> bool:
        start = next(steps, last)
        read(mapping, start, start + MIB)
        return in_memory(blob, range(start + 24 * MIB, start + 28 * MIB)) > 3 * MIB

    wait_until("what follows is read ahead", is_ahead)


def test_who_reads_on_is_read_ahead_of(passthrough: Mount) -> None:
    path, blob = cold_blob(passthrough, "model.bin")
    assert window_of(blob.stat().st_dev) <= 8 * MIB, "else the kernel itself reads as far"
    mapping = mapped(path)
    read_on(mapping, blob)
    assert mapping.numpy().tobytes() == blob.read_bytes()


def test_who_reads_a_header_is_not(passthrough: Mount) -> None:
    (path, blob), (other, other_blob) = (cold_blob(passthrough, name) for name in ("peek.bin", "whole.bin"))
    mapping, followed = mapped(path), mapped(other)
    read(mapping, 0, 64 << 10)
    read_on(followed, other_blob)
    assert in_memory(blob, range(17 * MIB, SIZE)) == 0


def test_a_file_that_is_gone_is_let_go_of(passthrough: Mount) -> None:
    path, backing = passthrough.path / "train.log", passthrough.store / "jobs" / "job" / "work" / "train.log"
    path.write_bytes(bytes(SIZE))
    make_cold(backing)
    daemon = passthrough.daemon
    assert daemon is not None

    def is_followed() -> bool:
        read(mapped(path), 0, 64 << 10)  # again: it is not followed for ever
        return daemon.leaked() == {str(backing): 1}

    wait_until("only the one that reads ahead is left", is_followed)
    path.unlink()
    wait_until("it is let go of", lambda: daemon.leaked() == {})
