"""What goes on beside the writers: commands that list, inspect, verify, fetch, delete and collect, and readers of
the view. Each is a loop of its own; whatever is not as it must be is a problem, and so is a command that does not
return."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from scripts.ordeals.mounts import PROGRAM, Mounted, environment, fuse_ckpt
from scripts.ordeals.writer import is_whole

STUCK = 120.0  # seconds after which a command hangs
ALLOWED = {0, 3, 5}  # done; deleted meanwhile; leased or busy meanwhile
PARTS = {"model.safetensors", "optimizer.safetensors", "trainer_state.json"}  # of a rotating writer's checkpoint


class Onlookers:
    """The loops on one store. `deleted` holds the ids that one of them asked to be deleted."""

    def __init__(self, top: Path, jobs: list[Mounted], seed: int) -> None:
        self.problems: list[str] = []
        self.counts: Counter[str] = Counter()
        self.deleted: set[str] = set()
        self._store = jobs[0].store
        self._top = top
        self._jobs = jobs
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self._collecting = self._has("gc")
        loops = [self.listing, self.inspect, self.verify, self.fetch, self.delete, self.read_view, self.kill_a_command]
        self._threads = [threading.Thread(target=self._loop, args=(one,)) for one in loops]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Let each finish what it does. One that cannot is a problem of its own."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * STUCK)
            if thread.is_alive():
                self.problems.append("an onlooker hangs")

    # -- the loops ----------------------------------------------------------------------------------------------------

    def listing(self) -> None:
        listed = self._listed()
        ids = [one["id"] for one in listed]
        if ids != sorted(set(ids)):
            self.problems.append("a listing is out of order, or names a checkpoint twice")

    def inspect(self) -> None:
        if one := self._any():
            self._command("checkpoint", "inspect", one["id"], "--json")

    def verify(self) -> None:
        if self._has("verify") and (one := self._any()):
            self._command("checkpoint", "verify", one["id"])

    def fetch(self) -> None:
        """What is fetched is whole, and whole as a checkpoint: no half of a directory."""
        if not (one := self._any()):
            return
        out = self._top / "fetched"
        shutil.rmtree(out, ignore_errors=True)
        said = self._command("checkpoint", "fetch", one["id"], "--destination", str(out))
        if said is not None and said.returncode == 0:
            self._check_files(f"{one['name']} as it was fetched", out)

    def delete(self) -> None:
        """One of each job's older ones; collected where the program can."""
        alive = [one for one in self._listed() if one["id"] not in self.deleted]
        if len(alive) > 20:
            chosen = self._chance.choice(alive[:-10])["id"]
            self.deleted.add(chosen)
            self._command("checkpoint", "delete", "--yes", chosen)
        if self._collecting and self._chance.random() < 0.2:
            self._command("checkpoint", "gc")

    def read_view(self) -> None:
        """A walk through the newest checkpoints of a mounted job."""
        job = self._chance.choice(self._jobs)
        view = job.path / ".checkpoints" / "by-id"
        for name in sorted(os.listdir(view))[-6:]:
            if not name.endswith(".json"):
                self._check_files(f"{name} of {job.job} in the read view", view / name)

    def kill_a_command(self) -> None:
        """A command that is killed leaves no lock behind: the others would notice."""
        if one := self._any():
            out = self._top / "killed"
            command = [*PROGRAM, "--store", str(self._store), "checkpoint", "fetch", one["id"], "--force"]
            process = subprocess.Popen(
                [*command, "--destination", str(out)],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env=environment(),
            )  # fmt: skip
            time.sleep(self._chance.uniform(0.1, 0.8))
            process.kill()
            process.wait()

    # -- what they have in common -------------------------------------------------------------------------------------

    def _loop(self, once: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                once()
            except Exception as error:  # any of them is what we are looking for
                self.problems.append(f"{once.__name__}: {error!r}")
                return
            self.counts[once.__name__] += 1
            self._over.wait(self._chance.uniform(0.0, 0.5))

    def _command(self, *arguments: str) -> subprocess.CompletedProcess[str] | None:
        try:
            said = fuse_ckpt(self._store, *arguments, timeout=STUCK)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{' '.join(arguments)} does not return")
            return None
        if said.returncode not in ALLOWED or "Traceback" in said.stderr:
            self.problems.append(f"{' '.join(arguments)}: {said.returncode} {said.stderr.strip()}")
        return said

    def _listed(self) -> list[dict[str, str]]:
        said = self._command("checkpoint", "list", "--json", "--status", "available")
        found: list[dict[str, str]] = json.loads(said.stdout) if said is not None and said.stdout else []
        return found

    def _any(self) -> dict[str, str] | None:
        listed = self._listed()
        return self._chance.choice(listed) if listed else None

    def _has(self, command: str) -> bool:
        return f" {command} " in fuse_ckpt(self._store, "checkpoint", "--help").stdout

    def _check_files(self, what: str, directory: Path) -> None:
        try:
            files = {path.name: path.read_bytes() for path in directory.iterdir()}
        except FileNotFoundError:  # deleted meanwhile
            return
        torn = [name for name, data in files.items() if name.endswith(".safetensors") and not is_whole(data)]
        self.problems += [f"{name} of {what} is torn" for name in torn]
        if "optimizer.safetensors" in files and set(files) != PARTS:
            self.problems.append(f"{what} is half a checkpoint: {sorted(files)}")
