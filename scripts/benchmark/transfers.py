"""How fast checkpoints leave the store: `python -m scripts.benchmark.transfers`.

Each round does the same work in both ways, one right after the other, and what is told is the median of the rounds'
ratios: an export against obstore's own put of the same files to the same SeaweedFS, and a fetch against cp.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import obstore

from fuse_ckpt.model import Checkpoint, Entry, Kind, Metadata, NewCheckpoint, Shape, Unit
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Place, Remote, export, fetch
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed, running

MIB = 1 << 20
SMALL = 100  # files of 100 KB beside the large one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of the large file (512)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="after one to warm up (5)")
    parser.add_argument(
        "--directory", type=Path, default=Path("."), metavar="DIR", help="the disk to measure on (here)"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuse-ckpt-bench-", dir=chosen.directory) as name:
        top = Path(name)
        files = _make(top / "files", chosen.size)
        with Store.open(top / "store") as store, running(top / "seaweed", volumes=200) as server:
            checkpoint = _commit(store, files)
            size = sum(path.stat().st_size for path in files)
            uploads = _Uploads(store, checkpoint, server, files)
            _report("export", "obstore's put", _rounds(chosen.rounds, uploads.ours, uploads.theirs), size)
            _report("export, read back", "obstore's put", _rounds(chosen.rounds, uploads.checked, uploads.theirs), size)
            copies = _Copies(store, checkpoint, top)
            _report("fetch", "cp and sync", _rounds(chosen.rounds, copies.ours, copies.synced), size)
            _report("fetch", "cp", _rounds(chosen.rounds, copies.ours, copies.plain), size)


def _make(directory: Path, size: int) -> list[Path]:
    directory.mkdir()
    files = [directory / "large.bin", *(directory / f"small-{number}.bin" for number in range(SMALL))]
    with files[0].open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))
    for path in files[1:]:
        path.write_bytes(os.urandom(100_000))
    return files


def _commit(store: Store, files: list[Path]) -> Checkpoint:
    store.ensure_job("bench", 0)
    entries = []
    for path in files:
        adopted = store.adopt(path)
        entries.append(Entry(path.name, Kind.FILE, 0o644, 0, adopted.size, adopted.digest))
    unit = Unit("step_1", Shape.DIRECTORY)
    return store.publish(NewCheckpoint("bench", unit, "0", 0, Metadata(), tuple(entries)))


class _Uploads:
    def __init__(self, store: Store, checkpoint: Checkpoint, server: Seaweed, files: list[Path]) -> None:
        self._store = store
        self._checkpoint = checkpoint
        self._files = files
        self._remote = Remote(server.connection(), BUCKET, NOWHERE)
        self._number = 0

    def ours(self) -> None:
        self._export(read_back=False)

    def checked(self) -> None:
        self._export(read_back=True)

    def theirs(self) -> None:
        self._number += 1
        for path in self._files:
            obstore.put(self._remote._client, f"theirs-{self._number}/{path.name}", path)
        self._clear(f"theirs-{self._number}")

    def _export(self, *, read_back: bool) -> None:
        self._number += 1
        place = Place(BUCKET, f"ours-{self._number}")
        export(self._store, self._checkpoint, self._remote, place, read_back=read_back)
        self._clear(place.prefix)

    def _clear(self, prefix: str) -> None:
        self._remote.delete(list(self._remote.list(prefix)))


class _Copies:
    def __init__(self, store: Store, checkpoint: Checkpoint, top: Path) -> None:
        self._store = store
        self._checkpoint = checkpoint
        self._top = top

    def ours(self) -> None:
        fetch(self._store, self._checkpoint, self._top / "ours")
        shutil.rmtree(self._top / "ours")

    def plain(self) -> None:
        self._copy()
        shutil.rmtree(self._top / "theirs")

    def synced(self) -> None:
        self._copy()
        subprocess.run(["sync", "-f", str(self._top / "theirs")], check=True)
        shutil.rmtree(self._top / "theirs")

    def _copy(self) -> None:
        subprocess.run(["cp", "-r", str(self._top / "files"), str(self._top / "theirs")], check=True)


def _rounds(count: int, ours: Callable[[], None], theirs: Callable[[], None]) -> list[tuple[float, float]]:
    """Seconds of each, round by round, after one to warm up; who begins changes from round to round."""
    found = []
    for number in range(count + 1):
        if number % 2:
            first, second = _timed(ours), _timed(theirs)
        else:
            second, first = _timed(theirs), _timed(ours)
        found.append((first, second))
    return found[1:]


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _report(ours: str, theirs: str, rounds: list[tuple[float, float]], size: int) -> None:
    mine, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(second / first for first, second in rounds)
    print(
        f"{ours:20} {size / mine / MIB:6.0f} MiB/s   {theirs:14} {size / other / MIB:6.0f} MiB/s   ratio {ratio:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
