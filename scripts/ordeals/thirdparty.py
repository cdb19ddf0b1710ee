"""`scripts/thirdparty`: programs of others on a mount, in both data paths, and in the plain directory beside it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from fuse_ckpt.store import Store
from scripts.ordeals.mounts import Mounted, OrdealError, data_paths, run, table, workspace
from scripts.ordeals.programs import EXCEPTIONS, PACKAGES, Program, programs

PLAIN = "plain"
PASS, FAIL, HUNG, DIED, LACKING = "pass", "FAIL", "HUNG", "DIED", "n/a"
_SKIPPED = re.compile(r"skipped: 1\b|not implemented|not supported|Unrecognised option")
_FAILED = re.compile(r"\b(error|fail):|failed: [1-9]")
_NOISE = re.compile(r"dispatching|setting to|passed:|successful run|skipped: 0|failed: 0|untrustworthy")


@dataclass(frozen=True)
class Outcome:
    """What came of one program in one place. `detail`: its last words, where it did not pass."""

    program: str
    place: str
    verdict: str
    seconds: float
    detail: str = ""


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/thirdparty",
        description="Run programs that check files on a mount, in both data paths, and in the plain directory beside"
        " it. Exits with 1 where one fails on a mount and not in the plain directory.",
    )
    add = parser.add_argument
    add("directory", type=Path, nargs="?", metavar="DIR", help="the disk to do it on (the temporary directory)")
    add("--quick", action="store_true", help="a few of them, in about a minute")
    add("--only", metavar="REGEX", help="those whose name fits")
    add("--seconds", type=float, default=1.0, metavar="S", help="how long each stressor works (1)")
    add("--data-path", choices=("passthrough", "daemon"), help="one of them only")
    add("--install", action="store_true", help="install the programs that are missing, by apt")
    add("--json", type=Path, metavar="FILE", help="write every outcome there")
    return parser.parse_args(given)


def main() -> int:
    return run("thirdparty", compare, arguments())


def compare(chosen: argparse.Namespace) -> int:
    """Run what was chosen everywhere; 1 where a mount is worse than the plain directory."""
    wanted = [
        program
        for program in programs(seconds=chosen.seconds)
        if (program.quick or not chosen.quick) and re.search(chosen.only or "", program.name)
    ]
    provide({program.needs for program in wanted}, install=chosen.install)
    paths = (chosen.data_path,) if chosen.data_path else data_paths()
    with workspace(chosen.directory, "thirdparty") as top, ExitStack() as stack:
        places = {PLAIN: top / PLAIN}
        places[PLAIN].mkdir()
        jobs = [Mounted(top / "store", way, top / way, ["--data-path", way]).mount() for way in paths]
        for job in jobs:
            stack.callback(job.kill)
            places[job.job] = job.path
        outcomes = [one for program in wanted for one in everywhere(program, places)]
        for job in jobs:
            job.umount()
        check_store(top / "store")
    return report(outcomes, list(places), chosen.json)


def provide(needed: set[str], *, install: bool) -> None:
    """See that the programs are there. Raises OrdealError naming the packages that are missing."""
    missing = sorted(PACKAGES[name] for name in needed if shutil.which(name) is None)
    if not missing:
        return
    how = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not install:
        raise OrdealError(f"not installed: {' '.join(missing)} (--install does it by apt)")
    root = [] if os.geteuid() == 0 else ["sudo"]
    for command in ([*root, "apt-get", "-qq", "update"], [*root, *how]):
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode != 0:
            raise OrdealError(f"failed: {' '.join(command)}")


def everywhere(program: Program, places: dict[str, Path]) -> list[Outcome]:
    """The program in each place in turn."""
    found = [run_in(program, name, path) for name, path in places.items()]
    verdicts = "  ".join(f"{one.place} {one.verdict}" for one in found)
    print(f"{program.name:32} {verdicts}", file=sys.stderr, flush=True)
    return found


def run_in(program: Program, place: str, path: Path) -> Outcome:
    """Run a program in a directory of its own below `path`; the directory goes afterwards."""
    work = path / ("w-" + re.sub(r"\W+", "-", program.name))
    started = time.monotonic()
    try:
        work.mkdir(mode=0o777)
        verdict, words = _verdict(program, work)
        os.statvfs(path)
        if verdict == PASS:
            shutil.rmtree(work)
    except OSError as error:
        verdict, words = (DIED if error.errno in _DEAD else FAIL), str(error)
    shutil.rmtree(work, ignore_errors=True)
    return Outcome(program.name, place, verdict, round(time.monotonic() - started, 1), "" if verdict == PASS else words)


_DEAD = (103, 107)  # ECONNABORTED, ENOTCONN: the mount has gone


def _verdict(program: Program, work: Path) -> tuple[str, str]:
    try:
        done = subprocess.run(
            ["timeout", "-k", "3", str(program.limit), "bash", "-c", program.command],
            env=os.environ | {"W": str(work)}, cwd=work, capture_output=True, text=True, errors="replace",
            timeout=program.limit + 30, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return HUNG, "it could not even be killed"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    words = " | ".join([line for line in lines if not _NOISE.search(line)][-3:])[-300:]
    if done.returncode in (124, 137):
        return HUNG, words
    said = "\n".join(lines)
    if program.needs == "stress-ng" and _SKIPPED.search(said):
        return LACKING, words
    failed = done.returncode != 0 or (program.needs == "stress-ng" and _FAILED.search(said))
    return (FAIL if failed else PASS), words


def check_store(root: Path) -> None:
    """What the programs saved was committed meanwhile: it must be whole. Raises OrdealError."""
    with Store.open(root) as store:
        problems = store.verify()
        print(f"{len(store.checkpoints())} checkpoints were committed beside them", file=sys.stderr)
    if problems:
        raise OrdealError(f"the store does not verify: {problems[0]} (and {len(problems) - 1} more)")


def report(outcomes: list[Outcome], places: list[str], file: Path | None) -> int:
    """Print the table and write the JSON; 1 where a mount is worse than the plain directory."""
    by_program: dict[str, dict[str, Outcome]] = {}
    for one in outcomes:
        by_program.setdefault(one.program, {})[one.place] = one
    rows = [{"program": name, **{p: found[p].verdict for p in places}} for name, found in by_program.items()]
    print(table(rows))
    counts = {place: Counter(one.verdict for one in outcomes if one.place == place) for place in places}
    print("\n" + "\n".join(f"{place}: " + ", ".join(f"{n} {v}" for v, n in counts[place].items()) for place in places))
    worse = [
        one
        for found in by_program.values()
        for one in found.values()
        if one.verdict not in (PASS, found[PLAIN].verdict)
        and not (one.verdict == LACKING and one.program in EXCEPTIONS)
    ]
    for one in worse:
        print(f"worse than plain: {one.program} on {one.place}: {one.verdict}: {one.detail}")
    if file is not None:
        told = {"outcomes": [asdict(one) for one in outcomes], "worse": [asdict(one) for one in worse]}
        file.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
