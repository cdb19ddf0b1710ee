"""`scripts/crash`: the daemon, and writers, killed at random moments under load; nothing may be lost, nothing false.

A round: mount (over what the last kill left), look whether all is there, let writers with four habits save, delete some
checkpoints beside them, and kill. Listed as available is acknowledged: that checkpoint must be there, whole, for ever.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.ordeals.crash_checks import Checks
from scripts.ordeals.mounts import PROGRAM, Mounted, OrdealError, environment, fuse_ckpt, run, wait_until, workspace
from scripts.ordeals.writer import HABITS

JOB = "crash"
KEPT = 40  # checkpoints; more of them are deleted, so that a long run fits on the disk
VICTIMS = ("daemon", "daemon", "daemon", "both", "writer")  # whom a kill takes, each as likely
EMPTIED_EVERY = 10  # rounds between two collections, where the program has that command


@dataclass
class Report:
    """What a run came to."""

    seed: int
    kills: int = 0
    writers_killed: int = 0
    acknowledged: int = 0
    deleted: int = 0
    files_checked: int = 0
    problems: list[str] = field(default_factory=list)
    mounts: list[float] = field(default_factory=list)  # seconds

    def text(self) -> str:
        slowest = max(self.mounts, default=0.0)
        usual = statistics.median(self.mounts or [0.0])
        return (
            f"{self.kills} kills of the daemon, {self.writers_killed} of a writer (seed {self.seed}):"
            f" {self.acknowledged} checkpoints acknowledged, {self.deleted} of them deleted,"
            f" {self.files_checked} files of the working tree compared;"
            f" mounted again in {usual:.1f} s (longest {slowest:.1f}); {len(self.problems)} problems"
        )


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/crash",
        description="Kill the daemon of a mount, and writers, at random moments under load; exit with 1 where anything"
        " that was listed as available is lost or changed, or anything is left over.",
    )
    add = parser.add_argument
    add("--kills", type=int, default=50, metavar="N", help="rounds, each with a kill (50)")
    add("--seed", type=int, default=None, metavar="S", help="of all that is random (the time)")
    add("--directory", type=Path, metavar="DIR", help="the disk to do it on (the temporary directory)")
    add("--data-path", choices=("auto", "passthrough", "daemon"), default="auto")
    add("--longest", type=float, default=2.0, metavar="S", help="seconds of load before a kill, at most (2)")
    add("--json", type=Path, metavar="FILE", help="write what came of it there")
    return parser.parse_args(given)


def main() -> int:
    return run("crash", crash, arguments())


def crash(chosen: argparse.Namespace) -> int:
    """Run the rounds; 1 where there is a problem."""
    seed = chosen.seed if chosen.seed is not None else time.time_ns() % 10**6
    report = Report(seed)
    with workspace(chosen.directory, "crash") as top, ExitStack() as stack:
        rounds = Rounds(top, random.Random(seed), report, chosen)
        stack.callback(rounds.end)
        for number in range(chosen.kills):
            rounds.one(number)
            if report.problems:
                break
        if not report.problems:
            rounds.last()
    print(report.text())
    for problem in report.problems:
        print(f"problem: {problem}")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return 1 if report.problems else 0


class Rounds:
    """The rounds of one run, on one store."""

    def __init__(self, top: Path, chance: random.Random, report: Report, chosen: argparse.Namespace) -> None:
        self._top = top
        self._chance = chance
        self._report = report
        self._longest: float = chosen.longest
        self._job = Mounted(top / "store", JOB, top / "mnt", ["--data-path", chosen.data_path])
        self._checks = Checks(top / "store", JOB, self._job.path, report.problems)
        self._writers: list[subprocess.Popen[bytes]] = []
        self._deleting: subprocess.Popen[bytes] | None = None
        said = fuse_ckpt(self._job.store, "checkpoint", "--help")
        self._can_collect = " gc " in said.stdout

    def one(self, number: int) -> None:
        """Mount, look, load, kill."""
        self._mount()
        self._checks.after_a_mount()
        self._load(number)
        wait_until("the writers write", self._checks.has_begun)
        deadline = time.monotonic() + self._chance.uniform(0.05, self._longest)
        while time.monotonic() < deadline:
            self._checks.note_listed()
            time.sleep(0.05)
        self._checks.note_listed()
        self._kill(self._chance.choice(VICTIMS))
        self._report.acknowledged = self._checks.acknowledged
        self._report.deleted = len(self._checks.deleted)
        self._report.files_checked = self._checks.files_checked

    def last(self) -> None:
        """Mount once more, end in order, and read every byte again."""
        self._mount()
        self._checks.after_a_mount()
        self._job.umount()
        self._checks.everything()

    def end(self) -> None:
        """Nothing is left running."""
        for process in (*self._writers, *([self._deleting] if self._deleting else [])):
            process.kill()
            process.wait()
        self._job.kill()

    def _mount(self) -> None:
        started = time.monotonic()
        try:
            self._job.mount()
        except OrdealError as error:
            self._report.problems.append(f"the store does not mount any more: {error}")
            raise
        self._report.mounts.append(round(time.monotonic() - started, 2))

    def _load(self, number: int) -> None:
        for habit in HABITS:
            log = self._checks.new_log(habit)
            command = [sys.executable, "-m", "scripts.ordeals.writer", habit, str(self._job.path), habit]
            with log.open("wb") as out:
                self._writers.append(
                    subprocess.Popen(
                        [*command, str(self._chance.randrange(1 << 30))], stdout=out, cwd="/", env=environment()
                    )
                )
        self._delete(number)

    def _delete(self, number: int) -> None:
        """In the background, so that the kill comes while it works."""
        command = [*PROGRAM, "--store", str(self._job.store), "checkpoint"]
        if self._can_collect and number % EMPTIED_EVERY == EMPTIED_EVERY - 1:
            command += ["gc"]
        elif surplus := self._checks.choose_to_delete(self._chance, KEPT):
            command += ["delete", "--yes", *surplus]
        else:
            return
        log = (self._top / "deleting.log").open("ab")
        with log:
            self._deleting = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", env=environment())

    def _kill(self, victim: str) -> None:
        if victim in ("writer", "both"):
            for process in self._chance.sample(self._writers, 2):
                process.kill()
                self._report.writers_killed += 1
        if victim == "writer":
            time.sleep(self._chance.uniform(0.0, 0.3))
            self._checks.note_listed()
        self._job.kill()
        self._report.kills += 1
        if self._deleting is not None:
            if self._chance.random() < 0.3:
                self._deleting.kill()
            self._deleting.wait()
            self._deleting = None
        for process in self._writers:
            process.kill()  # one that waits for a page of the dead mount would wait for ever
            process.wait()
        self._writers.clear()


if __name__ == "__main__":
    sys.exit(main())
