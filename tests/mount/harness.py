"""A job mounted for a test: the daemon is a child process of its own, and its end is looked at as closely as its
work."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fuse_ckpt.model import Checkpoint, State
from fuse_ckpt.session import control
from fuse_ckpt.store import Layout, Store
from scripts.mountpoints import answers, is_mounted

PATIENCE = 30.0  # seconds, for what takes well under one on an idle machine
STEP = 0.02  # seconds between two looks
PROGRAM = (sys.executable, "-m", "fuse_ckpt")
_BAD = re.compile(r" (WARNING|ERROR|CRITICAL) |^Traceback|Exception ignored", re.MULTILINE)
_O_PATH = 0o10000000
_ONE_AT_A_TIME = threading.Lock()  # a process opens a store once


def wait_until(what: str, look: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Look until there is something to see, and return it; fail with `what` if there never is."""
    deadline = time.monotonic() + patience
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {patience:g} s")
        time.sleep(STEP)
    return seen


def detach(path: Path) -> None:
    """The last resort: take a mount away, whatever its state."""
    for command in (["umount", "-l", str(path)], ["fusermount3", "-uz", str(path)]):
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(command, capture_output=True, check=False)
        if not is_mounted(path):
            return


class Daemon:
    """`fuse-ckpt … mount --foreground` as a child: its life, its log, its descriptors.

    `program`: what to run in place of fuse-ckpt (the same with a fault built in).
    """

    def __init__(self, arguments: Sequence[str], path: Path, log: Path, program: Sequence[str] = PROGRAM) -> None:
        self.path = path
        self.log_path = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*program, *arguments], stdout=output, stderr=output, cwd="/", start_new_session=True
            )
        try:
            wait_until(f"{path} is mounted", self._is_ready)
            self.start = self.descriptors()
        except BaseException:
            self.kill()
            detach(path)
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log}")
        return answers(self.path)

    def descriptors(self) -> Counter[str]:
        """What the daemon has open, without the directories that it holds for names the kernel remembers, and the
        processes that it watches (each once, or it is a leak)."""
        found: Counter[str] = Counter()
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):  # closed since, or a directory whose path is too long to be told
                target = os.readlink(f"/proc/{self.pid}/fd/{name}")
                information = Path(f"/proc/{self.pid}/fdinfo/{name}").read_text()
                if not int(re.findall(r"^flags:\s*(\d+)", information, re.M)[0], 8) & _O_PATH:
                    watched = re.findall(r"^Pid:\s*(-?\d+)", information, re.M)
                    found[f"pidfd of {watched[0]}" if watched else target] += 1
        return found

    def leaked(self) -> dict[str, int]:
        """What is open now and was not at the start."""
        now = self.descriptors()
        watched = [target for target in now if target.startswith("pidfd of ") and not target.endswith("-1")]
        return dict(now - self.start - Counter(watched))

    def wait(self, patience: float = PATIENCE) -> int:
        return self.process.wait(patience)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Mount:
    """One job at one mount point, through as many daemons as the test wants. `store` may be shared with others."""

    def __init__(self, store: Path, path: Path, job: str, options: Sequence[str], log: Path) -> None:
        self.store = store
        self.path = path
        self.job = job
        self.options = tuple(options)
        self.log_path = log
        self.daemon: Daemon | None = None
        self.leaks_expected = False
        self._problems: list[str] = []
        self._expected: list[str] = []
        self._allowed: list[str] = []

    @property
    def view(self) -> Path:
        return self.path / ".checkpoints"

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.pid

    @property
    def data_path(self) -> str:
        """Who moves the data, by the daemon's own word: "passthrough" (the kernel) or "daemon"."""
        return str(self.status()["data_path"])

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        path = Layout(self.store).control(self.job)
        answer: dict[str, Any] = wait_until("the daemon answers", lambda: control.ask(path, "status"))
        return answer

    # -- its life -----------------------------------------------------------------------------------------------------

    def mount(self, *options: str, program: Sequence[str] = PROGRAM) -> Mount:
        """Mount (again); returns when it is ready. `options` in place of those of before, if there are any."""
        assert self.daemon is None, "mounted already"
        self.options = options or self.options
        arguments = ["--store", str(self.store), "mount", "--foreground", *self.options, self.job, str(self.path)]
        self.daemon = Daemon(arguments, self.path, self.log_path, program)
        return self

    def umount(self) -> None:
        """`fuse-ckpt umount`: nothing leaked, nothing pending, a clean exit."""
        daemon = self.daemon
        assert daemon is not None, "not mounted"
        if not self.leaks_expected:
            self._note_leaks(daemon)
        said = self.cli("umount", str(self.path))
        self.daemon = None
        if said.returncode != 0:
            detach(self.path)
            daemon.kill()
            raise AssertionError(f"umount: {said.returncode} {said.stderr}")
        code = daemon.wait()
        assert code == 0, f"the daemon ended with {code}:\n{daemon.log}"
        assert not is_mounted(self.path)

    def kill(self, *, clear: bool = True) -> None:
        """SIGKILL to the daemon. `clear`: take the dead mount away too, as a person would before the next."""
        assert self.daemon is not None, "not mounted"
        self.daemon.kill()
        self.daemon = None
        if clear:
            said = self.cli("umount", str(self.path))
            assert said.returncode == 0, said.stderr
            assert not is_mounted(self.path)

    def commit(self) -> None:
        """Have the daemon commit all that is complete, as `checkpoint commit` does; returns when it has."""
        answer = control.ask(Layout(self.store).control(self.job), "commit", patience=PATIENCE)
        assert answer is not None
        assert "error" not in answer, answer

    def expect_log(self, pattern: str) -> None:
        """Allow, and demand, lines of the daemon's log that match."""
        self._expected.append(pattern)

    def allow_log(self, pattern: str) -> None:
        """Allow such lines, which may come or not."""
        self._allowed.append(pattern)

    def close(self) -> list[str]:
        """End what is left, and say all that is wrong with it."""
        if self.daemon is not None:
            daemon = self.daemon
            try:
                self.umount()
            except (AssertionError, subprocess.TimeoutExpired) as exc:
                self._problems.append(str(exc))
                with contextlib.suppress(ProcessLookupError):
                    daemon.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, 0)
                self._problems.append("processes of the daemon are left")
        if is_mounted(self.path):
            self._problems.append(f"{self.path} was left mounted")
            detach(self.path)
        self._look_into_log()
        with Store.open(self.store) as store:
            self._problems += store.verify()
        found, self._problems = self._problems, []
        return found

    def _note_leaks(self, daemon: Daemon) -> None:
        try:  # a commit that runs has files open too
            wait_until("closed", lambda: not daemon.leaked())
        except AssertionError:
            self._problems += [f"leaked: {target} ×{count}" for target, count in daemon.leaked().items()]

    def _look_into_log(self) -> None:
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        for pattern in self._expected:
            if not re.search(pattern, text, re.MULTILINE):
                self._problems.append(f"no {pattern!r} in the log")
        # A warning and the traceback below it are one.
        for entry in re.split(r"^(?=\d{4}-\d\d-\d\d )", text, flags=re.MULTILINE):
            if _BAD.search(entry) and not any(re.search(one, entry) for one in self._expected + self._allowed):
                self._problems.append(f"in the log: {entry.strip()}")

    # -- what it holds ------------------------------------------------------------------------------------------------

    def cli(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run fuse-ckpt on the store of this mount."""
        return subprocess.run(
            [*PROGRAM, "--store", str(self.store), *arguments],
            capture_output=True, text=True, check=False, cwd="/", timeout=120, **more,
        )  # fmt: skip

    def checkpoints(self, *, all: bool = False) -> list[dict[str, Any]]:
        """What `training checkpoints --json` says, oldest first; `all`: pending and failed ones too."""
        said = self.cli("training", "checkpoints", self.job, "--json", *(["--all"] if all else []))
        assert said.returncode == 0, said.stderr
        found: list[dict[str, Any]] = json.loads(said.stdout)
        return found

    def committed(self, name: str | None = None, status: str = "available") -> list[Checkpoint]:
        """The store's own word, without the 300 ms that a command takes; oldest first."""
        with _ONE_AT_A_TIME, Store.open(self.store) as store:
            return [
                found
                for found in store.checkpoints(self.job)
                if found.state == State(status) and name in (None, found.name)
            ]

    def wait_for(
        self, name: str, n: int = 1, status: str = "available", patience: float = PATIENCE
    ) -> list[Checkpoint]:
        """Wait until `n` checkpoints of that name have that status; returns them, oldest first."""

        def look() -> list[Checkpoint] | None:
            found = self.committed(name, status)
            return found if len(found) >= n else None

        found: list[Checkpoint] = wait_until(f"{n} × {name!r} {status}", look, patience)
        return found

    def by_id(self, checkpoint: Checkpoint | str) -> Path:
        """The read view's directory of a checkpoint."""
        return self.view / "by-id" / (checkpoint if isinstance(checkpoint, str) else checkpoint.id)

    def digests(self) -> dict[str, str]:
        """Digest by path of every file of every checkpoint in the read view, by re-reading its bytes."""
        return {
            f"{checkpoint.id}/{path.relative_to(self.by_id(checkpoint))}": sha256(path)
            for checkpoint in self.committed()
            for path in walk_files(self.by_id(checkpoint))
        }


def walk_files(top: Path) -> Iterator[Path]:
    """Every file below `top`, symlinks not followed."""
    for directory, _, names in os.walk(top):
        yield from (Path(directory) / name for name in names)


def sha256(path: Path) -> str:
    """The file's digest in hex, read whole."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def can_mount() -> str | None:
    """Why nothing can be mounted here; None: it can."""
    said = subprocess.run([*PROGRAM, "doctor"], capture_output=True, text=True, check=False, cwd="/", timeout=120)
    return None if said.returncode == 0 else said.stdout + said.stderr
