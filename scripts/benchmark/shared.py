"""How fast a shared object store is: `python -m scripts.benchmark.shared`.

Listing many checkpoints that this machine has not seen yet, and has seen; sending files against obstore's own put of
the same files to the same SeaweedFS, one right after the other; and getting them back. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import obstore
from blake3 import blake3
from uuid_utils import uuid7

from fuse_ckpt.model import Entry, Kind, Metadata, Shape
from fuse_ckpt.sharing import Decision, PartFile, PartRef, SharedStore, Verdict, group_of
from fuse_ckpt.sharing.documents import written
from fuse_ckpt.transfer import Place, Probed, Remote, Stop, run
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed, running

MIB = 1 << 20
JOB = "bench"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=10_000, metavar="N", help="that are listed (10,000)")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of the file that is sent (512)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="after one to warm up (5)")
    parser.add_argument("--directory", type=Path, default=Path("."), metavar="DIR", help="the disk to use (here)")
    chosen = parser.parse_args()
    directory = tempfile.TemporaryDirectory(prefix="fuse-ckpt-bench-", dir=chosen.directory)
    with directory as name, running(Path(name) / "seaweed", volumes=200) as server:
        _list(server, Path(name), chosen.checkpoints, chosen.rounds)
        _send(server, Path(name), chosen.size * MIB, chosen.rounds)


def _shared(server: Seaweed, cache: Path | None = None) -> tuple[SharedStore, Remote]:
    remote = Remote(server.connection(), BUCKET, NOWHERE)
    place = Place(BUCKET, "shared")
    shared = SharedStore(remote, place, cache=cache)
    shared.establish(Probed(place, True, False, 1, True, True), 1)
    return shared, remote


def _list(server: Seaweed, top: Path, count: int, rounds: int) -> None:
    shared, remote = _shared(server)

    def decide(number: int) -> None:
        group = group_of(JOB, "0", f"checkpoint-{number}", 1)
        ref = PartRef(0, "node-0", str(uuid7()), "0" * 64, 10**9, 10)
        decision = Decision(
            Verdict.COMMIT, JOB, group, ref.local, f"checkpoint-{number}", Shape.DIRECTORY, 1, "0", 1, number, number,
            10**9, 10, Metadata(step=number, train_loss=0.5, model="LlamaForCausalLM"), (ref,),
        )  # fmt: skip
        remote.put(shared.place.key(f"j/{JOB}/c/{group}.json"), written(decision))

    run(8, range(count), decide, Stop())
    packs = shared.place.key(f"j/{JOB}/s")

    def unpack() -> None:
        remote.delete(list(remote.list(packs)))  # the first listing has made them

    told = _listings(server, top / "single", count, rounds, unpack)
    print(f"list     {count} checkpoints, none of them packed: {told}")
    shared.reap(JOB, 1)
    told = _listings(server, top / "packed", count, rounds, lambda: None)
    print(f"list     {count} checkpoints, packed: {told}")


def _listings(server: Seaweed, top: Path, count: int, rounds: int, before: Callable[[], None]) -> str:
    cold: list[float] = []
    warm: list[float] = []
    for number in range(rounds):
        cache = top / f"cache-{number}"
        before()
        for figures in (cold, warm):
            figures.append(_timed(lambda cache=cache: _listed(server, cache, count)))  # type: ignore[misc]
    return f"cold {_middle(cold):.2f} s, warm {_middle(warm):.2f} s"


def _listed(server: Seaweed, cache: Path, count: int) -> None:
    found = _shared(server, cache)[0].list(JOB)
    assert len(found) == count, len(found)


def _send(server: Seaweed, top: Path, size: int, rounds: int) -> None:
    shared, remote = _shared(server)
    path = top / "file"
    hasher = blake3()
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(data := os.urandom(MIB))
            hasher.update(data)
    digest = hasher.hexdigest()
    ours, theirs, back = [], [], []
    for number in range(rounds + 1):
        group = group_of(JOB, "1", f"checkpoint-{number}", 1)
        theirs.append(_timed(lambda: obstore.put(remote._client, "theirs", path)))
        ours.append(_timed(lambda group=group: shared.put_data(JOB, group, 0, path, size, digest)))  # type: ignore[misc]
        file_ = PartFile.of(Entry("x", Kind.FILE, 0o644, 1, size, digest), f"d/{group}/00000/{digest}")
        back.append(_timed(lambda file_=file_: shared.fetch_file(JOB, file_, top / "back")))  # type: ignore[misc]
        remote.delete(["theirs", shared.place.key(f"j/{JOB}/{file_.key}")])
    ratio = statistics.median(their / our for our, their in zip(ours[1:], theirs[1:], strict=True))
    print(f"send     {size / MIB / _middle(ours[1:]):.0f} MiB/s, {ratio:.2f} of obstore's put")
    print(f"get back {size / MIB / _middle(back[1:]):.0f} MiB/s, proved and on the disk")
    with open("/proc/self/status") as lines:
        peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    print(f"memory   {int(peak) >> 10} MiB at most")


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _middle(figures: list[float]) -> float:
    return statistics.median(figures)


if __name__ == "__main__":
    main()
