"""Rounds of `training run` whose command is killed while it saves, and what is listed after each."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct, field

from fuse_ckpt.model import Checkpoint, Kind, State
from fuse_ckpt.store import Store
from scripts.killing.forms import FORMS, Form

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0  # seconds for a round's end


class Outcome(Struct):
    """What one round came to."""

    began: list[int] = field(default_factory=list)  # steps whose save was begun
    saved: list[int] = field(default_factory=list)  # those that the victim saw the end of
    loaded: int | None = None  # the step that it went on from


class Tally(Struct):
    """All rounds so far. `violations`: what must never happen, a line each."""

    kills: int = 0
    begun: int = 0
    saved: int = 0
    available: int = 0
    failed: int = 0
    mistrusted: int = 0  # of the failed ones: their save had ended, and its form tells
    loads: int = 0  # of available checkpoints, in a process of their own
    resumed: int = 0  # rounds that went on from -C JOB:latest
    violations: list[str] = field(default_factory=list)


class Killing:
    """Kills in the store below `top`. `random_` decides when; `kib` is the size of a saved file."""

    def __init__(self, top: Path, random_: random.Random, kib: int = 512) -> None:
        self.tally = Tally()
        self._store = top / "store"
        self._log = top / "errors"
        self._random = random_
        self._kib = kib
        self._known: set[tuple[str, int]] = set()  # ids and revisions
        self._newest: dict[str, int] = {}  # form → step of the newest checkpoint that can be resumed from
        self._took = 0.005  # seconds of the last save
        self._loader = subprocess.Popen(
            [sys.executable, "-m", "scripts.killing.loader"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )

    def close(self) -> None:
        with self._loader:  # closes both pipes and waits
            pass

    def round(self, name: str) -> Outcome:
        """Run the victim in that form, kill it in a save, and look at what is listed then."""
        with self._running(name) as process:
            outcome = self._kill(process, FORMS[name])
            code = process.wait(PATIENCE)
        self._check(code == 128 + signal.SIGKILL, f"{name}: training run ended with {code}")
        self.tally.kills += 1
        self.tally.begun += len(outcome.began)
        self.tally.saved += len(outcome.saved)
        self._check_resumed(name, outcome)
        self._check_listed(name, outcome)
        return outcome

    @contextlib.contextmanager
    def _running(self, name: str) -> Iterator[subprocess.Popen[str]]:
        job = _job(name)
        first = name not in self._newest
        again = [] if first else ["--restart", "-C", f"{job}:latest", "--if-any"]
        self._newest.setdefault(name, 0)
        victim = [sys.executable, "-m", "scripts.killing.victim", name, str(self._kib)]
        command = ["training", "run", job, *again, "--env", f"PYTHONPATH={ROOT}", "--", *victim]
        with self._log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "fuse_ckpt", "--store", str(self._store), *command],
                stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
            )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.kill()  # only where something went wrong: it has ended

    def _kill(self, process: subprocess.Popen[str], form: Form) -> Outcome:
        outcome, pid = Outcome(), 0
        assert process.stdout is not None
        last = self._random.randint(1, form.saves)
        for line in process.stdout:
            word, number, *seconds = line.split()
            if word == "pid":
                pid = int(number)
            elif word == "loaded":
                outcome.loaded = int(number)
            elif word == "saved":
                outcome.saved.append(int(number))
                self._took = float(seconds[0])
            elif word == "saving":
                outcome.began.append(int(number))
                if len(outcome.began) == last:
                    time.sleep(self._random.uniform(0, 1.3 * self._took))
                    os.kill(pid, signal.SIGKILL)
        return outcome

    # -- what must hold -----------------------------------------------------------------------------------------------

    def _check(self, holds: bool, what: str) -> None:
        if not holds:
            self.tally.violations.append(what)

    def _check_resumed(self, name: str, outcome: Outcome) -> None:
        expected = self._newest[name] or None
        self._check(outcome.loaded == expected, f"{name}: latest is step {expected}, loaded was {outcome.loaded}")
        self.tally.resumed += outcome.loaded is not None

    def _check_listed(self, name: str, outcome: Outcome) -> None:
        form, steps = FORMS[name], []
        with Store.open(self._store) as store:
            fresh = [one for one in store.checkpoints(_job(name)) if (one.id, one.revision) not in self._known]
            self._known.update((one.id, one.revision) for one in fresh)
            counts = Counter(one.state for one in fresh)
            whole = [(one, _files(store, one)) for one in fresh if one.state is State.AVAILABLE]
        self.tally.available += counts[State.AVAILABLE]
        self.tally.failed += counts[State.FAILED]
        self._check(counts.keys() <= {State.AVAILABLE, State.FAILED}, f"{name}: {dict(counts)}")
        for one, files in whole:
            steps.append(self._load(name, form, one, files))
        self._newest[name] = max([self._newest[name], *steps])
        missing = sorted(set(outcome.saved) - set(steps)) if form.told else []
        self.tally.mistrusted += len(missing)
        self._check(len(missing) <= counts[State.FAILED], f"{name}: saved, and neither available nor failed: {missing}")

    def _load(self, name: str, form: Form, one: Checkpoint, files: Mapping[str, str]) -> int:
        assert self._loader.stdin is not None
        assert self._loader.stdout is not None
        self._loader.stdin.write(json.dumps(dict(files)).encode() + b"\n")
        self._loader.stdin.flush()
        answer = json.loads(self._loader.stdout.readline())
        step = int(answer.get("step", 0))
        self._check("error" not in answer, f"{name}: {one.name}@{one.ordinal} cannot be loaded: {answer.get('error')}")
        wanted = {file.format(step).rpartition("/")[2] for file in form.files}
        self._check(files.keys() == wanted, f"{name}: {one.name}@{one.ordinal} is torn: it holds {sorted(files)}")
        self.tally.loads += 1
        return step


def _job(name: str) -> str:
    return re.sub(r"\W+", "-", name)


def _files(store: Store, checkpoint: Checkpoint) -> dict[str, str]:
    entries = store.manifest(checkpoint.id).entries
    return {entry.path: str(store.blob_path(entry.digest)) for entry in entries if entry.kind is Kind.FILE}
