"""`fuse-ckpt` on a store of the test's own, as a person runs it: to its end, in the background, on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fuse_ckpt.model import Checkpoint
from fuse_ckpt.store import Store
from tests.mount.harness import PATIENCE, PROGRAM, detach, wait_until

SCRIPTS = Path(__file__).parents[2] / "scripts"
TITLE = "List of Checkpoints for a Training Job"
OUTPUT = "FLEXAI_OUTPUT_CHECKPOINT_DIR"
INPUT = "FLEXAI_INPUT_CHECKPOINT_DIR"
DATA_PATH = "FUSE_CKPT_DATA_PATH"
_OURS = re.compile(rb"fuse_ckpt")
_PRELUDE = f"""\
import os, signal, subprocess, sys, time
from pathlib import Path
out = Path(os.environ.get("{OUTPUT}", "/nonexistent"))
"""


def python(code: str, *arguments: str) -> list[str]:
    """A training command of a few lines; `out` is its output directory."""
    return [sys.executable, "-u", "-c", _PRELUDE + textwrap.dedent(code), *arguments]


class Started:
    """A program in the background, with its output in files and its input a pipe."""

    def __init__(self, command: list[str], top: Path, number: int, env: Mapping[str, str], **more: Any) -> None:
        self._out = top / f"out{number}"
        self._err = top / f"err{number}"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            chosen: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": out, "stderr": err, "cwd": "/"} | more
            self.process: subprocess.Popen[bytes] = subprocess.Popen(command, env=env, **chosen)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_line(self, pattern: str) -> re.Match[str]:
        """Wait for a whole line of its output that matches."""

        def look() -> re.Match[str] | None:
            running = self.process.poll() is None  # before its output: what it said last counts
            found = re.search(rf"^{pattern}$\n", self.out, re.MULTILINE)
            assert found or running, f"ended with {self.process.returncode}: {self.out} {self.err}"
            return found

        found: re.Match[str] = wait_until(f"{pattern!r} printed", look)
        return found

    def tell(self, line: str = "go") -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self, patience: float = PATIENCE) -> int:
        return self.process.wait(patience)

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Desk:
    """A store below `top`, and everything that was started on it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.store = top / "store"
        self._started: list[Started] = []
        self._expected: list[str] = []

    # -- programs -----------------------------------------------------------------------------------------------------

    def environment(self, **more: str) -> dict[str, str]:
        """Our own, without what other sessions have set, but with who is to move the data."""
        strange = ("FLEXAI_", "FUSE_CKPT_")
        kept = {k: v for k, v in os.environ.items() if k == DATA_PATH or not k.startswith(strange)}
        return kept | {"PYTHONPATH": str(SCRIPTS.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more

    def cli(
        self, *arguments: str, env: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run fuse-ckpt on this store and wait for it."""
        return subprocess.run(
            [*PROGRAM, "--store", str(self.store), *arguments], text=True, capture_output=True,
            check=False, cwd="/", timeout=120, env=self.environment(**(env or {})), **more,
        )  # fmt: skip

    def run(self, job: str, *options: str, command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """`training run` to its end."""
        return self.cli("training", "run", job, *options, "--", *command, **more)

    def start(
        self, job: str, *options: str, command: list[str], env: Mapping[str, str] | None = None, **more: Any
    ) -> Started:
        """`training run` in the background."""
        whole = [*PROGRAM, "--store", str(self.store), "training", "run", job, *options, "--", *command]
        return self.launch(whole, env=env, **more)

    def launch(self, command: list[str], *, env: Mapping[str, str] | None = None, **more: Any) -> Started:
        """Any program in the background, ended with the test."""
        started = Started(command, self.top, len(self._started), self.environment(**(env or {})), **more)
        self._started.append(started)
        return started

    # -- what came of it ----------------------------------------------------------------------------------------------

    def listed(self, job: str, *, all: bool = False) -> list[dict[str, Any]]:
        """`training checkpoints --json`, oldest first."""
        said = self.cli("training", "checkpoints", job, "--json", *(["--all"] if all else []))
        assert said.returncode == 0, said.stderr
        found: list[dict[str, Any]] = json.loads(said.stdout)
        return found

    def inspected(self, what: str, reference: str) -> dict[str, Any]:
        """`training inspect` or `checkpoint inspect`, as JSON."""
        said = self.cli(what, "inspect", reference, "--json")
        assert said.returncode == 0, said.stderr
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    def committed(self, job: str) -> list[Checkpoint]:
        """The store's own word on a job ("": on what was pushed), whatever their states, oldest first; none as long as
        there is no store."""
        if not (self.store / "format").exists():
            return []
        with Store.open(self.store) as store:
            return store.checkpoints(job) if job in {"", *(known.name for known in store.jobs())} else []

    def wait_for(self, job: str, n: int) -> list[Checkpoint]:
        """Wait for at least `n` checkpoints of a job."""

        def look() -> list[Checkpoint] | None:
            found = self.committed(job)
            return found if len(found) >= n else None

        found: list[Checkpoint] = wait_until(f"{n} checkpoints of {job}", look)
        return found

    def locked(self, job: str) -> bool:
        """Whether a daemon serves the job."""
        with Store.open(self.store) as store:
            return store.job_locked(job)

    # -- its end ------------------------------------------------------------------------------------------------------

    def expect_log(self, pattern: str) -> None:
        """Allow such lines in the daemons' logs."""
        self._expected.append(pattern)

    def close(self) -> list[str]:
        """End what is left, and say all that is wrong with it."""
        for started in self._started:
            started.close()
        problems: list[str] = []
        with contextlib.suppress(AssertionError):
            wait_until("nothing left", lambda: not self.mounts() and not self.processes(), patience=30.0)
        problems += [f"{place} was left mounted" for place in self.mounts()]
        problems += [f"process {pid} was left: {command}" for pid, command in self.processes().items()]
        for place in reversed(self.mounts()):
            detach(Path(place))
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        problems += self._logged()
        if (self.store / "format").exists():
            with Store.open(self.store) as store:
                problems += store.verify()
        return problems

    def mounts(self) -> list[str]:
        """What is mounted below `top`."""
        with open("/proc/self/mountinfo") as lines:
            places = [line.split(" ")[4] for line in lines]
        return [place for place in places if place.startswith(f"{self.top}/")]

    def processes(self) -> dict[int, str]:
        """Processes of fuse-ckpt that hold something open below `top`."""
        return {pid: command for pid, command in _processes() if _holds(pid, f"{self.top}/")}

    def daemons_of(self, started: Started) -> list[int]:
        """The daemons that a `training run` has started."""
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        return [pid for pid, command in _processes() if str(pid) in children and "fuse_ckpt.session" in command]

    def _logged(self) -> Iterator[str]:
        for log in self.top.rglob("daemon.log"):
            for entry in re.split(r"^(?=\d{4}-\d\d-\d\d )", log.read_text(errors="replace"), flags=re.MULTILINE):
                bad = re.search(r" (WARNING|ERROR|CRITICAL) |^Traceback|Exception ignored", entry)
                if bad and not any(re.search(pattern, entry) for pattern in self._expected):
                    yield f"in {log}: {entry.strip()}"


def listing(top: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything below `top`: (mode, inode, mtime in ns, content or link target) by path; empty where it is not there.

    Locks are left out: to ask is to touch them.
    """
    found = {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if name.startswith("locks"):
            continue
        status = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
        found[name] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found


def one_line(text: str) -> bool:
    """Whether an error is said in one line, without a traceback."""
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


def _processes() -> Iterator[tuple[int, str]]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{name}/cmdline").read_bytes()
            if _OURS.search(command):
                yield int(name), command.replace(b"\0", b" ").decode(errors="replace")


def _holds(pid: int, top: str) -> bool:
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith(top):
                    return pid != os.getpid()
    return False
