"""Memory and time of what is large, or claims to be: each in a process of its own, whose peak is measured."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contents.samples import torch_zip

MIB = 1024 * 1024

PROGRAM = """
import json, os, re, sys
from fuse_ckpt.contents import compare, look, scan
from fuse_ckpt.model import Entry, Kind

def entry(path):
    return Entry("weights" + os.path.splitext(path)[1], Kind.FILE, 0o644, 1, size=os.path.getsize(path), digest=path)

def opened(path):
    return open(path, "rb", buffering=0)

entries = [entry(path) for path in sys.argv[2:]]
if sys.argv[1] == "compare":
    tensors = compare(entries[:1], entries[1:], opened).tensors
    said = [[one.change, one.distance.max_abs if one.distance else None] for one in tensors]
else:
    said = [one.what for one in look(entries, opened).problems]
    said += [what for one in scan(entries, opened, {}) for what in one.scan.doubts]
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(json.dumps([int(peak), said]))
"""


def run(*arguments: object) -> tuple[float, list[object]]:
    """The peak of the process in MiB, and what it said."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    peak, said = json.loads(done.stdout)
    return peak / 1024, said


def sparse(path: Path, size: int, last: float) -> Path:
    """A safetensors file of `size` bytes of zeros, but for its last element."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.seek(size - 4, 1)
        file.write(struct.pack("<f", last))
    return path


def test_memory_of_a_comparison_does_not_depend_on_sizes(tmp_path: Path) -> None:
    pairs = [
        [sparse(tmp_path / f"{size}-{last}.safetensors", size * MIB, last) for last in (1, 3)] for size in (1, 512)
    ]
    (small, one), (large, other) = (run("compare", *pair) for pair in pairs)
    assert one == other == [["changed", 2.0]]
    assert large < small + 20
    assert large < 200


ENDLESS = 3_100_000
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {  # what a file's name ends with, its bytes
    "a memo without end": (".pt", lambda: b"\x80\x04N" + b"\x94" * ENDLESS),
    "lists without end": (".pt", lambda: torch_zip(b"\x80\x02" + b"]" * ENDLESS)),
    "long values": (".pkl", lambda: b"\x80\x04" + (b"B" + struct.pack("<I", MIB) + bytes(MIB)) * 400 + b"N"),
    "a zip bomb": (".pt", lambda: torch_zip(bytes(200 * MIB), compression=zipfile.ZIP_DEFLATED)),
    "a header of 2 GiB": (".safetensors", lambda: struct.pack("<Q", 2 << 30) + b"{"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_asks_for_all_memory_gets_a_word(tmp_path: Path, what: str) -> None:
    suffix, make = HOSTILE[what]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(make())
    peak, said = run("look", path)
    assert said
    assert peak < 450
