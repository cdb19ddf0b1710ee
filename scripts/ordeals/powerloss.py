"""`scripts/powerloss`: the power goes at every write; what was listed as available must be there, whole.

Two ways. A recorded disk: a job saves on a filesystem whose every write and flush is written down; then each prefix of
the record is replayed, with the writes that no flush has promised dropped, torn and reordered. And the filesystem's own
shutdown call (--godown), which stops a real one between two of its writes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuse_ckpt.model import Manifest
from scripts.ordeals import disks
from scripts.ordeals.crash_checks import Checks
from scripts.ordeals.mounts import (
    Mounted,
    OrdealError,
    end_process,
    environment,
    mounted_below,
    need_root,
    run,
    wait_until,
    workspace,
)
from scripts.ordeals.replay import Recording, Replayer, look, mount_again
from scripts.ordeals.writer import HABITS

JOB = "power"
SLOW = 600.0  # seconds for the writers on a disk that is a FUSE filesystem itself


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("scripts/powerloss", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--points", type=int, default=100, metavar="N", help="prefixes of the record to replay (100; 0: all)")
    add("--saves", type=int, default=6, metavar="N", help="saves of each of the four writers that are recorded (6)")
    add("--godown", type=int, default=0, metavar="N", help="cut a real filesystem off N times, instead of a recording")
    add("--fs", choices=("ext4", "xfs"), default="ext4")
    add("--mounts", type=int, default=10, metavar="N", help="mount the job at every N-th point, too (10)")
    add("--seed", type=int, default=None, metavar="S", help="of all that is random (the time)")
    add("--directory", type=Path, metavar="DIR", help="where the images lie (the temporary directory)")
    add("--json", type=Path, metavar="FILE", help="write what came of it there")
    return parser.parse_args(given)


def main() -> int:
    return run("powerloss", powerloss, arguments())


def powerloss(chosen: argparse.Namespace) -> int:
    """One way or the other; 1 where anything was lost."""
    need_root("scripts/powerloss")
    if chosen.fs not in disks.available():
        raise OrdealError(f"mkfs.{chosen.fs} is not installed")
    seed = chosen.seed if chosen.seed is not None else time.time_ns() % 10**6
    started = time.monotonic()
    with workspace(chosen.directory, "powerloss") as top:
        try:
            found = (godown if chosen.godown else replay)(top, random.Random(seed), chosen)
        finally:
            disks.clear(top)
    found |= {"filesystem": chosen.fs, "seed": seed, "seconds": round(time.monotonic() - started)}
    print(", ".join(f"{name} {value}" for name, value in found.items() if name != "problems"))
    for problem in found["problems"]:
        print(f"problem: {problem}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if found["problems"] else 0


# -- a recorded disk --------------------------------------------------------------------------------------------------


def replay(top: Path, chance: random.Random, chosen: argparse.Namespace) -> dict[str, Any]:
    """Record, and look at what each cut would have left."""
    recording = record(top, chance, chosen)
    cuts = recording.choose(chosen.points or len(recording.prefixes), chance)
    problems: list[str] = []
    replayer = Replayer(recording, top, chance)
    place = top / "cut"
    job = Mounted(place / "store", JOB, top / "again")
    try:
        for number, cut in enumerate(cuts):
            replayer.cut(cut, reordered=number % 2 == 1)
            disks.mount(replayer.image, place)
            found = look(recording, cut, place)
            if number % chosen.mounts == chosen.mounts - 1 and not found:
                found = mount_again(recording, cut, job)
            disks.umount(place)
            problems += [f"at record {cut}: {one}" for one in found]
    finally:
        replayer.close()
    return {
        "prefixes replayed": len(cuts),
        "of records": len(recording.records),
        "acknowledged": len(recording.acknowledged),
        "problems": problems,
    }


def record(top: Path, chance: random.Random, chosen: argparse.Namespace) -> Recording:
    """Save on a logged disk, and note when each checkpoint is first listed."""
    base, image, log = top / "base", top / "disk.img", top / "log"
    disks.make(base, chosen.fs)
    subprocess.run(["cp", "--sparse=always", base, image], check=True)
    acknowledged: dict[str, tuple[int, Manifest]] = {}
    with logged_disk(top / "served", image, log) as file, attached(file, top / "disk") as disk:
        job = Mounted(disk / "store", JOB, top / "mnt", ["--quiet-period", "0.5"]).mount()
        disks.run("sync", "-f", str(disk))
        started = log.stat().st_size
        checks = Checks(job.store, JOB, job.path, [])
        writers = start_writers(job, checks, chance, chosen.saves)
        try:
            deadline = time.monotonic() + SLOW
            while any(one.poll() is None for one in writers) and time.monotonic() < deadline:
                note(checks, acknowledged, log)
                time.sleep(0.05)
        finally:
            for one in writers:
                end_process(one, 5.0)
        job.umount()
        note(checks, acknowledged, log)
    return Recording(base, log, started, acknowledged)


def note(checks: Checks, acknowledged: dict[str, tuple[int, Manifest]], log: Path) -> None:
    """What is listed now was safe by now: by the end of the log as it is after the listing."""
    checks.note_listed()
    now = log.stat().st_size
    for checkpoint, manifest in checks.known.items():
        acknowledged.setdefault(checkpoint, (now, manifest))


def start_writers(
    job: Mounted, checks: Checks, chance: random.Random, count: int | None
) -> list[subprocess.Popen[bytes]]:
    """A writer of each habit, `count` saves each, or without end."""
    writers = []
    for habit in HABITS:
        command = [sys.executable, "-m", "scripts.ordeals.writer", habit, str(job.path), habit]
        with checks.new_log(habit).open("wb") as out:
            more = [str(chance.randrange(1 << 30)), *([] if count is None else [str(count)])]
            writers.append(subprocess.Popen([*command, *more], stdout=out, cwd="/", env=environment()))
    return writers


@contextmanager
def logged_disk(place: Path, image: Path, log: Path) -> Iterator[Path]:
    """The file that is the disk, while its server runs."""
    place.mkdir()
    command = [sys.executable, "-m", "scripts.ordeals.logged_disk", str(place), str(image), str(log)]
    server = subprocess.Popen(command, cwd="/", env=environment())
    try:
        wait_until("the logged disk is there", lambda: bool(mounted_below(place)) and (place / "disk").exists())
        yield place / "disk"
    finally:
        disks.umount(place)
        server.wait()


@contextmanager
def attached(file: Path, place: Path) -> Iterator[Path]:
    """The filesystem on the logged disk, mounted."""
    device = disks.attach(file)
    try:
        disks.mount(device, place)
        yield place
        disks.umount(place)
    finally:
        disks.clear(place)
        disks.release(device)


# -- a real one that is cut off ---------------------------------------------------------------------------------------


def godown(top: Path, chance: random.Random, chosen: argparse.Namespace) -> dict[str, Any]:
    """Rounds of saving and cutting the filesystem off, on one disk."""
    image, place = top / "disk.img", top / "disk"
    disks.make(image, chosen.fs, 1 << 30)
    disks.mount(image, place)
    problems: list[str] = []
    job = Mounted(place / "store", JOB, top / "mnt")
    checks = Checks(job.store, JOB, job.path, problems)
    cuts = 0
    while cuts < chosen.godown and not problems:
        one_cut(job, checks, chance, place, first=cuts == 0)
        disks.plug_in_again(image, place)
        cuts += 1
    if not problems:
        job.mount()
        checks.after_a_mount(power=False)
        job.umount()
        checks.everything()
    disks.umount(place)
    return {
        "cuts": cuts, "acknowledged": checks.acknowledged, "deleted": len(checks.deleted), "problems": problems
    }  # fmt: skip


def one_cut(job: Mounted, checks: Checks, chance: random.Random, place: Path, *, first: bool) -> None:
    """Mount, look, save for a while, and pull the plug."""
    job.mount()
    if not first:
        checks.after_a_mount(power=False)
    surplus = checks.choose_to_delete(chance, 60)
    if surplus:
        checks.delete(surplus)
    writers = start_writers(job, checks, chance, None)
    wait_until("the writers write", checks.has_begun)
    deadline = time.monotonic() + chance.uniform(0.2, 2.0)
    while time.monotonic() < deadline:
        checks.note_listed()
        time.sleep(0.02)
    disks.cut(place)
    job.kill()
    for one in writers:
        one.kill()
        one.wait()
    subprocess.run(["umount", "-l", str(job.path)], check=False, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
