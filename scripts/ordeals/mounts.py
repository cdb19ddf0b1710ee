"""Jobs that an ordeal mounts, each with its daemon as a child process, and the directory in which all of it happens."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.mountpoints import answers

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "fuse_ckpt")
PATIENCE = 60.0  # seconds, for what takes well under one on an idle machine
END_PATIENCE = 120.0  # seconds for a daemon that has much to commit
POLL = 0.02  # seconds


class OrdealError(Exception):
    """Why an ordeal cannot go on, in one line."""


def wait_until(what: str, look: Callable[[], bool], patience: float = PATIENCE, poll: float = POLL) -> None:
    """Look until it is so. Raises OrdealError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not look():
        if time.monotonic() > deadline:
            raise OrdealError(f"{what}: not within {patience:g} s")
        time.sleep(poll)


def mounted_below(top: Path) -> list[str]:
    """What is mounted at `top` or below it, however stale; the last mounted one first."""
    with open("/proc/self/mountinfo") as lines:
        places = [line.split(" ")[4] for line in lines]
    return [place for place in reversed(places) if place == str(top) or place.startswith(f"{top}/")]


def fuse_ckpt(
    store: Path, *arguments: str, timeout: float = END_PATIENCE, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the program on a store, and wait for it. `before`: what runs it (unshare, prlimit)."""
    return subprocess.run(
        [*before, *PROGRAM, "--store", str(store), *arguments],
        capture_output=True, text=True, check=False, cwd="/", timeout=timeout, env=environment(),
    )  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """Ours, with this tree's own fuse_ckpt, whatever is installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FUSE_CKPT_", "FLEXAI_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | more


class Mounted:
    """A job at a place, through as many daemons as the ordeal wants: `mount`, `kill`, `mount` again."""

    def __init__(self, store: Path, job: str, path: Path, options: Sequence[str] = ()) -> None:
        self.store = store
        self.job = job
        self.path = path
        self.options = tuple(options)
        self.log = path.with_name(f"{path.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        path.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        assert self._process is not None, "not mounted"
        return self._process.pid

    def mount(self, *, before: Sequence[str] = (), patience: float = PATIENCE) -> Mounted:
        """Mount, over a stale mount too; returns when it answers. Raises OrdealError with the daemon's last words."""
        command = [*before, *PROGRAM, "--store", str(self.store), "mount", "--foreground", *self.options]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, self.job, str(self.path)],
                stdout=output, stderr=output, cwd="/", start_new_session=True, env=environment(),
            )  # fmt: skip
        try:
            wait_until(f"{self.path} is mounted", self._is_ready, patience)
        except BaseException:
            self.kill()
            raise
        return self

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL; the mount stays behind, stale."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def umount(self) -> None:
        """Commit, unmount, and wait for the daemon. Raises OrdealError where it does not end well."""
        assert self._process is not None, "not mounted"
        said = fuse_ckpt(self.store, "umount", str(self.path))
        if said.returncode != 0:
            raise OrdealError(f"umount {self.path}: {said.stderr.strip()}")
        code = self._process.wait(PATIENCE)
        self._process = None
        if code != 0:
            raise OrdealError(f"the daemon of {self.job} ended with {code}: {self.last_words()}")

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise OrdealError(f"the daemon of {self.job} ended with {self._process.returncode}: {self.last_words()}")
        return answers(self.path)


def data_paths() -> tuple[str, ...]:
    """The ways of moving the data that this machine has; the daemon's is always there."""
    from fuse_ckpt.fuse.passthrough import probe

    return ("passthrough", "daemon") if probe(Path(tempfile.gettempdir())).depth else ("daemon",)


@contextmanager
def workspace(parent: Path | None, name: str) -> Iterator[Path]:
    """A directory that is gone afterwards, with all that was mounted in it; nothing is removed through a mount."""
    directory = Path(tempfile.mkdtemp(prefix=f".fuse-ckpt-{name}-", dir=parent)).resolve()
    try:
        yield directory
    finally:
        for place in mounted_below(directory):
            subprocess.run(["umount", "-l", place], check=False, capture_output=True)
            subprocess.run(["fusermount3", "-uz", place], check=False, capture_output=True)
        if mounted_below(directory):
            print(f"something is still mounted below {directory}: unmount it and remove it", file=sys.stderr)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def run(name: str, ordeal: Callable[[argparse.Namespace], int], chosen: argparse.Namespace) -> int:
    """Run an ordeal's main part; a signal ends it in order, and what keeps it from going on is one line."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        return ordeal(chosen)
    except OrdealError as error:
        print(f"scripts/{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def need_root(what: str) -> None:
    """Raises OrdealError where we are not root."""
    if os.geteuid() != 0:
        raise OrdealError(f"{what} needs root (loop devices, mount): run it with sudo, or in a container as root")


def end_process(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> int:
    """End a child of ours, at once if it does not end by itself; returns its exit code."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of the same keys as text, the keys above."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)
