"""A recorded disk, cut off at many points: what each of them would have left, mounted and looked at."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.model import Manifest, State
from fuse_ckpt.store import Store
from scripts.ordeals import disks
from scripts.ordeals.crash_checks import Checks
from scripts.ordeals.logged_disk import FLUSH, WRITE, Record, records
from scripts.ordeals.mounts import Mounted, OrdealError

_LOST, _TORN = 0.45, 0.10  # the share of writes since the last flush that never reached the disk, or did in part
_SECTOR = 512  # bytes; a disk writes one wholly or not at all


class Recording:
    """A log of a disk, the image that it began with, and when each checkpoint was acknowledged (a place in the log)."""

    def __init__(self, base: Path, log: Path, started: int, acknowledged: dict[str, tuple[int, Manifest]]) -> None:
        self.base = base
        self.records = list(records(log))
        self.acknowledged = acknowledged
        self.log = log
        self._first = next(n for n, record in enumerate(self.records) if record.end >= started)

    @property
    def prefixes(self) -> range:
        """How many records may have happened at a cut: none before the store was there."""
        return range(self._first, len(self.records) + 1)

    def choose(self, count: int, chance: random.Random) -> list[int]:
        """`count` of the prefixes, in order; all of them if there are no more."""
        return sorted(chance.sample(self.prefixes, min(count, len(self.prefixes))))

    def known_at(self, cut: int) -> list[Manifest]:
        """The checkpoints that somebody had seen listed as available by then."""
        end = self.records[cut - 1].end if cut else 0
        return [manifest for position, manifest in self.acknowledged.values() if position <= end]


class Replayer:
    """Makes the image that each cut would have left. Cuts must come in order."""

    def __init__(self, recording: Recording, top: Path, chance: random.Random) -> None:
        self._recording = recording
        self._chance = chance
        self._durable = top / "durable"
        self.image = top / "image"
        self._done = 0  # records that `durable` holds
        self._log = os.open(recording.log, os.O_RDONLY)
        subprocess.run(["cp", "--sparse=always", recording.base, self._durable], check=True)

    def close(self) -> None:
        os.close(self._log)

    def cut(self, count: int, *, reordered: bool) -> None:
        """Make `image` as `count` records leave it: all of them, or only what a flush has promised and some others."""
        every = self._recording.records
        flushed = next((n for n in range(count - 1, -1, -1) if every[n].kind == FLUSH), 0)
        with open(self._durable, "r+b", buffering=0) as disk:
            for record in every[self._done : flushed]:
                self._apply(disk.fileno(), record, None)
        self._done = max(self._done, flushed)
        subprocess.run(["cp", "--sparse=always", self._durable, self.image], check=True)
        with open(self.image, "r+b", buffering=0) as disk:
            for record in every[self._done : count]:
                self._apply(disk.fileno(), record, self._fate(record) if reordered else None)

    def _fate(self, record: Record) -> int:
        """How many bytes of a write that no flush has promised reached the disk."""
        drawn = self._chance.random()
        if drawn < _LOST:
            return 0
        if drawn < _LOST + _TORN:
            return self._chance.randrange(record.size // _SECTOR + 1) * _SECTOR
        return record.size

    def _apply(self, disk: int, record: Record, size: int | None) -> None:
        if record.kind == WRITE:
            os.pwrite(disk, os.pread(self._log, record.size if size is None else size, record.at), record.offset)


def look(recording: Recording, cut: int, place: Path) -> list[str]:
    """What is wrong with the store on the disk at `place`, of what was acknowledged before the cut."""
    known = recording.known_at(cut)
    try:
        with Store.open(place / "store", create=False) as store:
            problems = _compare(store, known)
            store.recover()
            return problems + _compare(store, known) + store.problems
    except (FuseCkptError, OSError) as error:
        return [f"the store does not open: {error}"]


def _compare(store: Store, known: Sequence[Manifest]) -> list[str]:
    there = {one.id for one in store.checkpoints(states={State.AVAILABLE})}
    lost = [one.checkpoint for one in known if one.checkpoint.id not in there]
    problems = [f"{one.id} ({one.name}) was acknowledged, and is lost" for one in lost]
    kept = [one for one in known if one.checkpoint.id in there]
    changed = [one for one in kept if store.manifest(one.checkpoint.id).entries != one.entries]
    problems += [f"{one.checkpoint.id} is not what it was" for one in changed]
    # All that is listed, acknowledged or not: what is called available must be whole.
    return problems + store.verify()


def mount_again(recording: Recording, cut: int, job: Mounted) -> list[str]:
    """What a whole mount of the job finds, of what was pending too."""
    problems: list[str] = []
    checks = Checks(job.store, job.job, job.path, problems)
    checks.remember(recording.known_at(cut))
    try:
        job.mount()
        checks.after_a_mount(power=False)
        job.umount()
    except (OrdealError, FuseCkptError) as error:
        job.kill()
        disks.clear(job.path)
        problems.append(str(error))
    return problems
