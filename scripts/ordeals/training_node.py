"""A machine of `scripts/nodes --training`: a store of its own, a daemon, an uploader and one rank of a training."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fuse_ckpt.session import control
from fuse_ckpt.store import Layout
from scripts.ordeals.mounts import END_PATIENCE, PROGRAM, ROOT, OrdealError, environment
from scripts.ordeals.networks import Link
from tests.transfer.cluster import Cluster
from tests.transfer.seaweed import BUCKET, NOWHERE

JOB = "training"
RANK_PROGRAM = ROOT / "scripts" / "ordeals" / "dcp_rank.py"
QUIET = 1.0  # seconds; a rank that writes no .metadata has no better sign that its part is whole


def meet(address: str, port: int) -> str:
    return f"tcp://{address}:{port}"


def rank_environment(rank: int, ranks: int, meeting: str, attempt: str, interface: str) -> dict[str, str]:
    """What tells a rank who it is. One thread, and the same order of all sums: the same numbers each time."""
    return {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "MEETING": meeting, "ATTEMPT": attempt, "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": interface, "TP_SOCKET_IFNAME": interface,
    }  # fmt: skip


class Node:
    """`log`: what its rank says of what it does."""

    def __init__(self, top: Path, number: int, link: Link, cluster: Cluster) -> None:
        self.number, self.link = number, link
        self.top = top / f"node{number}"
        self.top.mkdir()
        self.store = self.top / "store"
        self.log = self.top / "rank.log"
        self._cluster = cluster
        self._run: subprocess.Popen[bytes] | None = None

    def attach(self) -> None:
        """As a person would. Raises OrdealError."""
        endpoint = self.link.endpoint(self._cluster.port)
        options = ["--endpoint", endpoint, "--bucket", BUCKET, "--credentials-file", str(self._cluster.admin)]
        self.must("storage", "create", "lake", "--provider", "s3", *options)
        self.must("storage", "attach", "lake")

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.link.before, *PROGRAM, "--store", str(self.store), *arguments], capture_output=True, text=True,
            check=False, cwd="/", timeout=END_PATIENCE, env=environment(**NOWHERE),
        )  # fmt: skip

    def must(self, *arguments: str) -> str:
        said = self.cli(*arguments)
        if said.returncode != 0:
            raise OrdealError(f"node {self.number}: {' '.join(arguments)}: {said.returncode} {said.stderr.strip()}")
        return said.stdout

    def listed(self) -> list[dict[str, Any]]:
        """`training checkpoints`; nothing where the job is not known yet."""
        said = self.cli("training", "checkpoints", JOB, "--json")
        found: list[dict[str, Any]] = json.loads(said.stdout) if said.returncode == 0 else []
        return found

    # -- a run --------------------------------------------------------------------------------------------------------

    def start(self, nodes: int, meeting: str, attempt: str, steps: int, resume: str | None, *, drain: bool) -> None:
        """`training run`, as one of `nodes`."""
        told = rank_environment(self.number, nodes, meeting, attempt, self.link.interface)
        options = ["--replicate", "lake", "--nodes", str(nodes), "--rank", str(self.number), "--attempt", attempt]
        options += ["--restart", "--quiet-period", str(QUIET), *([] if drain else ["--no-drain"])]
        options += ["-C", resume] if resume else []
        self._launch(JOB, options, told, [str(self.log), str(steps)])

    def resume_alone(self, job: str, checkpoint: str, ranks: int, steps: int) -> None:
        """All ranks on this machine, in one mount, from a checkpoint that only the object store has."""
        told = {"OMP_NUM_THREADS": "1", "ATTEMPT": "alone", "PAUSE": "0"}
        program = [str(ranks), str(self.log), str(steps)]
        self._launch(job, ["-C", checkpoint], told, program, "scripts.ordeals.dcp_ranks")

    def _launch(
        self, job: str, options: list[str], told: Mapping[str, str], arguments: list[str], module: str = ""
    ) -> None:
        program = [sys.executable, "-m", module] if module else [sys.executable, str(RANK_PROGRAM)]
        command = [*PROGRAM, "--store", str(self.store), "training", "run", job, *options, "--", *program, *arguments]
        with (self.top / "run.log").open("ab") as output:
            self._run = subprocess.Popen(
                [*self.link.before, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                env=environment(**NOWHERE, **told, TMPDIR=str(self.top)),  # torch leaves things there
            )  # fmt: skip

    @property
    def code(self) -> int | None:
        """How the run has ended, if it has."""
        return None if self._run is None else self._run.poll()

    def has_begun(self, attempt: str) -> bool:
        """Whether its rank trains, as part of that start."""
        return self.log.exists() and f"began {attempt} " in self.log.read_text()

    def wait(self, patience: float) -> int:
        assert self._run is not None
        try:
            return self._run.wait(patience)
        except subprocess.TimeoutExpired:
            raise OrdealError(f"node {self.number}: the run does not end; see {self.last_words()}") from None

    def end(self, patience: float) -> None:
        """SIGTERM, as a scheduler does, and SIGKILL to all that is left after `patience` seconds."""
        if self._run is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._run.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._run.wait(patience)
        self.kill_all()

    def last_words(self) -> str:
        lines = (self.top / "run.log").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])

    # -- what can be killed -------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return control.ask(Layout(self.store).control(JOB), "status") or {}

    def kill(self, what: str) -> bool:
        """SIGKILL to the "daemon" or the "uploader"; False where there is none at this moment."""
        pid = self.status().get("pid" if what == "daemon" else "uploader")
        if pid is None:
            return False
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def kill_all(self) -> None:
        """SIGKILL to everything that runs on this machine."""
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._run is not None:
            self._run.kill()
            self._run.wait()
            self._run = None

    def _processes(self) -> Iterator[int]:
        """Whoever has this store, or the rank's log, among the words or the environment that it was started with."""
        mark = f"{self.top}/".encode()
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                said = Path(f"/proc/{name}/cmdline").read_bytes() + Path(f"/proc/{name}/environ").read_bytes()
                if mark in said or self._is_daemon(name):
                    yield int(name)

    def _is_daemon(self, pid: str) -> bool:
        """Daemon and uploader are told of their store by a pipe: they have it open."""
        if b"fuse_ckpt.session" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{number}").startswith(f"{self.top}/"):
                    return True
        return False
