"""`scripts/bench`: its arguments, and what is made, measured and taken away again."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.store import Store
from scripts.benchmark import daemon, index, machine
from scripts.benchmark.loads import LOADS
from scripts.benchmark.mounts import BenchError, Example, Ours
from scripts.benchmark.payload import Payload
from scripts.benchmark.places import Foreign, Place, Plain, View, remove_workspace
from scripts.benchmark.registry import Case
from scripts.benchmark.report import Report, progress
from scripts.benchmark.rounds import can_drop_caches, measure
from scripts.benchmark.saves import SAVES
from scripts.benchmark.sizes import Sizes

CASES = SAVES.cases | LOADS.cases
DAEMON, INDEX = "daemon", "index"
DAEMON_ROUNDS = 3  # each leaves its bytes in the store
DATA_PATHS = ("auto", "passthrough", "daemon")
HELD = ("--quiet-period", "600")  # longer than the saves: nothing is committed before they are over
JOB = "bench"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    cases = "\n".join(f"  {case.name:24} {case.title}" for case in CASES.values())
    parser = argparse.ArgumentParser(
        "scripts/bench",
        description="How fast a mount is, against the plain directory on the same disk, in the same run, by turns.",
        epilog=f"cases (-cold: with the kernel's caches dropped, as root):\n{cases}\n"
        f"  {DAEMON:24} what the daemon pays for a save, and how long a commit takes",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=_positive, default=7, metavar="N", help="rounds of each case, after one to warm up (7)")
    add("--scale", type=float, default=1.0, metavar="X", help="make sizes and counts smaller (1)")
    add("--only", type=_names, metavar="CASE,…", help="these cases only; a name stands for its cold one too")
    add("--skip", type=_names, default=[], metavar="CASE,…", help="without these cases")
    add("--data-path", choices=DATA_PATHS, help="who moves the bytes (what mount chooses by itself)")
    add(
        "--against",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a further directory; repeatable",
    )
    add("--example", type=Path, metavar="PATH", help="pyfuse3's example passthroughfs.py, to be mounted beside")
    add("--directory", type=Path, default=Path("."), metavar="DIR", help="the disk to measure on (here)")
    add("--json", type=Path, metavar="FILE", help="write every figure there")
    add(
        "--index", type=_positive, nargs="?", const=10_000, metavar="N", help="measure a store of N checkpoints (10000)"
    )
    add("--commits", type=_positive, default=10_000, metavar="N", help="with --index: commits through a mount (10000)")
    chosen = parser.parse_args(given)
    unknown = {*(chosen.only or []), *chosen.skip} - {*CASES, DAEMON, INDEX}
    if unknown:
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    return chosen


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _names(text: str) -> list[str]:
    return text.split(",")


def _named(text: str) -> tuple[str, Path]:
    name, _, directory = text.partition("=")
    if not name or not Path(directory).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR of a directory")
    return name, Path(directory)


def is_wanted(name: str, chosen: argparse.Namespace) -> bool:
    """Whether a case is to be run; a name also stands for its cold case."""
    names = {name, name.removesuffix("-cold")}
    return not names & {*chosen.skip} and (chosen.only is None or bool(names & {*chosen.only}))


def chosen_cases(chosen: argparse.Namespace) -> list[Case]:
    cases = [case for case in CASES.values() if is_wanted(case.name, chosen)]
    if any(case.cold for case in cases) and not can_drop_caches():
        progress("no cold cases: only root may drop the kernel's caches")
        cases = [case for case in cases if not case.cold]
    return cases


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A directory that is gone afterwards, with all that was mounted and left in it."""
    directory = Path(tempfile.mkdtemp(prefix=".fuse-ckpt-bench-", dir=parent)).resolve()
    try:
        yield directory
    finally:
        remove_workspace(directory)


def bench(chosen: argparse.Namespace, directory: Path, report: Report) -> None:
    """Measure all that was chosen, and add it to `report` as it is found."""
    options = ["--data-path", chosen.data_path] if chosen.data_path else []
    cases = chosen_cases(chosen)
    with ExitStack() as stack:
        payload = Payload(Sizes(chosen.scale))
        stack.callback(payload.close)
        if cases or is_wanted(DAEMON, chosen):
            ours = _mount(stack, directory, JOB, options)
            report.machine["data path"] = ours.status()["data_path"]
        if cases:
            _run_cases(report, cases, payload, _places(stack, ours, chosen, directory), chosen.rounds)
        if is_wanted(DAEMON, chosen):
            _run_daemon(report, stack, ours, payload, [*options, *HELD])
    if chosen.index:
        report.index = index.measure(directory, chosen.index, chosen.commits)


def _mount(stack: ExitStack, directory: Path, job: str, options: Sequence[str]) -> Ours:
    root = directory / f"{job}.store"
    with Store.open(root):  # made: the mount's own is another process
        pass
    mounted = Ours(root, job, directory / job, options)
    stack.callback(mounted.close)
    return mounted


def _places(stack: ExitStack, ours: Ours, chosen: argparse.Namespace, directory: Path) -> list[Place]:
    places: list[Place] = [Plain(directory), ours, View(ours)]
    if chosen.example is not None:
        places.append(Example(chosen.example.resolve(), directory))
        stack.callback(places[-1].close)
    for name, other in chosen.against:
        places.append(Foreign(name, other))
        stack.callback(places[-1].close)
    return places


def _run_cases(report: Report, cases: Sequence[Case], payload: Payload, places: Sequence[Place], rounds: int) -> None:
    for case in cases:
        progress(f"{case.name}: {case.title}")
        report.results.append(measure(case, payload, places, rounds))


def _run_daemon(report: Report, stack: ExitStack, ours: Ours, payload: Payload, options: Sequence[str]) -> None:
    progress("the daemon: saves that are committed")
    report.daemon = daemon.committed_saves(ours, payload.state(), DAEMON_ROUNDS)
    progress("the daemon: saves without commits")
    held = _mount(stack, ours.path.parent, "held", options)
    report.daemon += daemon.uncommitted_saves(held, payload.state(), DAEMON_ROUNDS)
    progress("the daemon: hashing")
    report.daemon += daemon.hashing(ours.store, payload.state())


def main() -> int:
    """Run the bench; a signal ends it in order, and what was found until then is told."""
    chosen = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    report = Report(machine.describe(chosen.directory), {name: str(value) for name, value in vars(chosen).items()})
    try:
        with workspace(chosen.directory) as directory:
            bench(chosen, directory, report)
    except (BenchError, FuseCkptError) as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        print(report.text())
        if chosen.json is not None:
            report.write(chosen.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
