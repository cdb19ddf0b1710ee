"""Mounts that the bench makes, each with its daemon as a child process, and takes away again."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuse_ckpt.session import pending_units
from fuse_ckpt.store import Store
from scripts.benchmark.places import EXAMPLE, OURS, Place
from scripts.mountpoints import answers, is_mounted

PROGRAM = (sys.executable, "-m", "fuse_ckpt")
READY_PATIENCE = 60.0  # seconds until a mount answers
SETTLE_PATIENCE = 600.0  # seconds until everything is committed
END_PATIENCE = 120.0  # seconds for a daemon to go
POLL = 0.05  # seconds
SETTLE_POLL = 0.2  # seconds; each look makes the daemon read its drafts' directories


class BenchError(Exception):
    """Why there is nothing to measure, in one line."""


def wait_until(what: str, look: Callable[[], bool], patience: float, poll: float = POLL) -> None:
    """Look until it is so. Raises BenchError after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not look():
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {patience:g} s")
        time.sleep(poll)


class Child:
    """A daemon in the foreground, as a child of ours; what it says goes to `log`."""

    def __init__(self, command: Sequence[str], mountpoint: Path, log: Path) -> None:
        self._mountpoint = mountpoint
        self._log = log
        mountpoint.mkdir(exist_ok=True)
        with log.open("ab") as output:
            # A session of its own: a terminal's ^C is for the bench, which then unmounts in order.
            self._process = subprocess.Popen(command, stdout=output, stderr=output, cwd="/", start_new_session=True)
        try:
            wait_until(f"{mountpoint} is mounted", self._is_ready, READY_PATIENCE)
        except BaseException:
            self.end([])
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self, command: Sequence[str]) -> None:
        """Unmount by `command`, and by force if it does not; returns when the daemon has gone."""
        if command and is_mounted(self._mountpoint):
            subprocess.run(command, check=False, timeout=END_PATIENCE, stdout=subprocess.DEVNULL)
        for forced in (["umount", "-l"], ["fusermount3", "-uz"]):
            if is_mounted(self._mountpoint):
                with contextlib.suppress(FileNotFoundError):
                    subprocess.run([*forced, str(self._mountpoint)], check=False, capture_output=True)
        try:
            self._process.wait(END_PATIENCE if command else 1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"the daemon of {self._mountpoint} ended: {_last_line(self._log)}")
        return answers(self._mountpoint)


class Ours(Place):
    """A job of the store at `store`, mounted by fuse-ckpt; `options` are those of its `mount`."""

    def __init__(self, store: Path, job: str, mountpoint: Path, options: Sequence[str] = ()) -> None:
        super().__init__(OURS, mountpoint)
        self.job = job
        log = mountpoint.with_suffix(".log")
        command = [*PROGRAM, "--store", str(store), "mount", "--foreground", *options, job, str(mountpoint)]
        self._child = Child(command, mountpoint, log)
        try:
            self.store = Store.open(store, create=False)
        except BaseException:
            self._unmount()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    def settle(self) -> None:
        """Return when everything that was saved is committed."""
        wait_until(
            f"everything of {self.job} is committed",
            lambda: not pending_units(self.store, self.job),
            SETTLE_PATIENCE,
            SETTLE_POLL,
        )

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself: `data_path`, and the `reason` for it."""
        directory = os.open(self.store.layout.job(self.job), os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                # By descriptor: the address of a socket holds 107 bytes only.
                peer.connect(f"/proc/self/fd/{directory}/{self.store.layout.control(self.job).name}")
                peer.sendall(b"status\n")
                answer: dict[str, Any] = json.loads(peer.makefile("rb").readline())
        finally:
            os.close(directory)
        return answer

    def close(self) -> None:
        self.store.close()
        self._unmount()

    def _unmount(self) -> None:
        self._child.end([*PROGRAM, "umount", str(self.path)])


class Example(Place):
    """pyfuse3's own passthroughfs.py, the program at `program`, on a directory of ours."""

    def __init__(self, program: Path, workspace: Path) -> None:
        super().__init__(EXAMPLE, workspace / "example")
        source = workspace / "example.source"
        source.mkdir()
        command = [sys.executable, str(program), str(source), str(self.path)]
        self._child = Child(command, self.path, self.path.with_suffix(".log"))

    def close(self) -> None:
        self._child.end(["fusermount3", "-u", str(self.path)])


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "without a word"
