"""Reading what can be read of a damaged index: `python -m fuse_ckpt.store.salvage INDEX` prints it as JSON lines.

A process of its own, because LMDB trusts its file: a damaged page may end the process that reads it (SIGSEGV, SIGBUS,
an assertion). Each line is written when it is read, so whatever came before is kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Checkpoint, Job, Manifest, Run

from .index import Index
from .records import Records
from .tables import Kept, Remnant

T = TypeVar("T")
PATIENCE = 3600.0  # seconds; a damaged page may send a reader round in circles


class Salvaged(Struct):
    """What an old index still says, by id or name. `whole`: it could be read to its end."""

    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    remnants: list[Remnant] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    whole: bool = False


def salvage(index: Path, lock: Path) -> Salvaged:
    """Read the index in `index` in a child process, which may die of it. `lock` is not taken by anybody else."""
    found = Salvaged()
    if not (index / "data.mdb").exists():
        return found
    import subprocess  # 10 ms that no listing should pay

    command = [sys.executable, "-m", __name__, str(index), str(lock)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    with child, child.stdout as lines:
        for line in lines:
            _take(found, json.loads(line)) if line.endswith(b"\n") else None
    found.whole = child.wait(PATIENCE) == 0
    return found


def _take(found: Salvaged, told: dict[str, Any]) -> None:
    for name, value in told.items():
        if name == "checkpoint":
            head = msgspec.convert(value, Checkpoint)
            found.checkpoints[head.id] = head
        elif name == "manifest":
            manifest = msgspec.convert(value, Manifest)
            found.manifests[manifest.checkpoint.id] = manifest
        elif name == "job":
            job = msgspec.convert(value, Job)
            found.jobs[job.name] = job
        elif name == "run":
            found.runs.append(msgspec.convert(value, Run))
        elif name == "remnant":
            found.remnants.append(msgspec.convert(value, Remnant))
        elif name == "kept":
            found.kept.append(msgspec.convert(value, Kept))


def _read(records: Records) -> Iterator[tuple[str, object]]:
    for job in records.jobs():
        yield "job", job
        yield from (("run", run) for run in records.runs(job.name))
    for head in records.checkpoints():
        yield "checkpoint", head
        try:
            yield "manifest", records.manifest(head.id, deleted=True)
        except CorruptRecord:  # its file may be whole
            continue
    yield from (("remnant", one) for one in records.remnants())
    yield from (("kept", one) for one in records.kept())


def main() -> int:
    index = Index(Path(sys.argv[1]), Path(sys.argv[2]))

    def tell(records: Records) -> None:
        for name, value in _read(records):
            sys.stdout.write(json.dumps({name: msgspec.to_builtins(value)}) + "\n")

    try:
        index.read(tell)
    finally:
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
