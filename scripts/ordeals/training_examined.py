"""What `scripts/nodes --training` has left, and what a machine with an empty store makes of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.model import Stage
from fuse_ckpt.sharing import Decision
from scripts.ordeals.mounts import OrdealError, environment
from scripts.ordeals.training import Report
from scripts.ordeals.training_killed import Field
from scripts.ordeals.training_node import JOB

ON = 4  # steps that are trained after the resume elsewhere
NEVER_CAME = "its parts never came"
PATIENCE = 240.0  # seconds for that

Losses = dict[tuple[int, int], str]  # (rank, step) → all digits


class Examination:
    def __init__(self, field: Field, report: Report) -> None:
        self._field, self._report = field, report
        self._ranks = len(field.nodes)
        self._shared = field.shared()
        self._saved: dict[tuple[str, str, int], dict[str, str]] = {}  # (attempt, NAME, rank) → path → SHA-256

    def work(self) -> None:
        lived = [self._said(node.log, rank) for rank, node in enumerate(self._field.nodes)]
        committed = self._decided()
        for one in committed:
            self._compare(one)
        self._same_everywhere(committed)
        if not committed:
            self._report.problems.append("no group was committed: the ordeal has shown nothing")
            return
        newest = max(committed, key=lambda one: (one.metadata.step or 0, one.sealed_ns))
        resumed = self._resume(newest.id, (newest.metadata.step or 0) + ON)
        self._same_losses([*lived, *resumed], resumed)

    # -- the groups ---------------------------------------------------------------------------------------------------

    def _decided(self) -> Sequence[Decision]:
        """All complete groups are decided; the others never are committed. Returns the committed ones."""
        for standing in self._shared.undecided(JOB):
            if len(standing.present) == standing.nodes:
                self._report.problems.append(f"group {standing.group} is complete, and not decided")
            else:
                self._shared.abort(JOB, standing.group, NEVER_CAME, time.time_ns())
        found = self._shared.list(JOB, aborted=True)
        aborted = {one.group for one in found if not one.committed}
        for one in found:
            if one.reason not in (NEVER_CAME, ""):
                self._report.problems.append(f"group {one.group} was aborted: {one.reason}")
        committed = [one for one in found if one.committed]
        self._report.committed, self._report.aborted = len(committed), len(aborted)
        groups = {one.group for one in committed}
        for group, stages in self._field.seen.items():
            if Stage.REPLICATED in stages and group not in groups:
                self._report.problems.append(f"group {group} was seen committed, and is not")
            if Stage.ABORTED in stages and group in groups:
                self._report.problems.append(f"group {group} was seen aborted, and is committed")
        self._report.problems += self._shared.problems
        return committed

    def _compare(self, decision: Decision) -> None:
        """Every byte that the ranks have told of is there, and nothing else."""
        wanted: dict[str, str] = {}
        told = 0
        for rank in range(self._ranks):
            mine = self._saved.get((decision.attempt, decision.name, rank), {})
            told += bool(mine)
            wanted |= mine
        try:
            found = self._read(decision.group)
        except FuseCkptError as error:
            self._report.problems.append(f"{decision.name} ({decision.id}) cannot be read: {error}")
            return
        whole = {".metadata", *(f"__{rank}_0.distcp" for rank in range(self._ranks))}
        if found.keys() != whole:
            self._report.problems.append(f"{decision.name} ({decision.id}) holds {sorted(found)}")
        elif wanted.items() - found.items() or (told == self._ranks and found != wanted):
            wrong = {path: digest for path, digest in found.items() if wanted.get(path) != digest}
            known = sorted({key for key, files in self._saved.items() if set(files.values()) & set(wrong.values())})
            self._report.problems.append(
                f"{decision.name} ({decision.id}) of {decision.attempt} has other bytes than were saved in"
                f" {sorted(wrong)}, those of {known[:3]}"
            )

    def _read(self, group: str) -> dict[str, str]:
        found, place = {}, self._field.top / "read"
        for file in self._shared.read(JOB, group).files:
            if file.digest:
                self._shared.fetch_file(JOB, file, place)
                found[file.path] = hashlib.sha256(place.read_bytes()).hexdigest()
                self._report.files_read += 1
                self._report.bytes_read += file.size
        return found

    def _same_everywhere(self, committed: Sequence[Decision]) -> None:
        """Each machine lists each of them once, as one, with the NODE of all."""
        node = ",".join(str(rank) for rank in range(self._ranks))
        wanted = {(one.id, one.name, node, one.size) for one in committed}
        for machine in self._field.nodes:
            rows = [row for row in machine.listed() if row["replicated"].startswith("replicated")]
            found = {(row["id"], row["name"], row["node"], row["sizeBytes"]) for row in rows}
            if found != wanted or len(rows) != len(wanted):
                self._report.problems.append(
                    f"node {machine.number} lists {len(rows)}, there are {len(wanted)}: {sorted(found ^ wanted)[:3]}"
                )
            self._report.rows = rows

    # -- the losses ---------------------------------------------------------------------------------------------------

    def _said(self, log: Path, rank: int) -> Losses:
        """The losses that a rank told, in all its lives; and what it saved is noted."""
        found: Losses = {}
        for line in log.read_text().splitlines() if log.exists() else []:
            kind, attempt, step, *rest = line.split(" ", 3)
            if kind == "loss" and found.setdefault((rank, int(step)), rest[0]) != rest[0]:
                self._report.problems.append(f"rank {rank} had another loss of step {step} in {attempt} than before")
            elif kind == "saved":
                self._saved[attempt, f"step-{step}", rank] = json.loads(rest[0])
        self._report.steps = max([self._report.steps, *(step for _, step in found)])
        return found

    def _resume(self, checkpoint: str, steps: int) -> list[Losses]:
        """Train on where there was nothing; the job is not known there either."""
        there = self._field.elsewhere
        there.attach()
        there.resume_alone("elsewhere", checkpoint, self._ranks, steps)
        if there.wait(PATIENCE) != 0:
            raise OrdealError(f"{checkpoint} cannot be resumed from elsewhere: {there.last_words()}")
        logs = [there.log.with_name(f"{rank}-{there.log.name}") for rank in range(self._ranks)]
        began = {line for log in logs for line in log.read_text().splitlines() if line.startswith("began")}
        if began != {f"began alone {steps - ON}"}:
            self._report.problems.append(f"elsewhere it began with {began}, not with step {steps - ON}")
        return [self._said(log, rank) for rank, log in enumerate(logs)]

    def _same_losses(self, all_said: Sequence[Losses], resumed: Sequence[Losses]) -> None:
        """Not a digit differs from a training that nothing happened to: gloo adds in one order, each rank has one
        thread, and every loss is of the rank's own batch."""
        last = max(step for said in all_said for _, step in said)
        log = self._field.top / "whole.log"
        said = subprocess.run(
            [sys.executable, "-m", "scripts.ordeals.dcp_ranks", str(self._ranks), str(log), str(last)],
            capture_output=True, text=True, check=False,
            env=environment(ATTEMPT="whole", PAUSE="0", TMPDIR=str(self._field.top)),
        )  # fmt: skip
        if said.returncode != 0:
            raise OrdealError(f"the training without any harm failed: {said.stderr.strip()[-300:]}")
        whole: Losses = {}
        for rank in range(self._ranks):
            whole |= self._said(log.with_name(f"{rank}-{log.name}"), rank)
        for one in all_said:
            wrong = {key for key, loss in one.items() if whole[key] != loss}
            self._report.losses_compared += len(one)
            if wrong:
                self._report.problems.append(f"{len(wrong)} losses (rank, step) differ: {sorted(wrong)[:3]}")
        self._report.resumed = sum(len(one) for one in resumed)
        if self._report.resumed != ON * self._ranks:
            self._report.problems.append(f"elsewhere {self._report.resumed} losses were told, not {ON * self._ranks}")
