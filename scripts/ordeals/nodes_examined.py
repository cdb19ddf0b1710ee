"""What a machine with an empty store finds, when the killing of `scripts/nodes` is over."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.sharing import GroupState
from scripts.ordeals.nodes_rank import JOB, Field, seen


@dataclass
class Report:
    """What a run came to."""

    seed: int
    kills: int = 0
    at_fault_points: int = 0
    servers: int = 0
    partitions: int = 0
    lost_answers: int = 0
    groups: int = 0
    committed: int = 0
    aborted: int = 0
    deleted: int = 0
    bytes_read: int = 0
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        return (
            f"{self.kills} kills, {self.at_fault_points} of them at fault points, {self.servers} of the object store,"
            f" {self.partitions} partitions, {self.lost_answers} answers lost (seed {self.seed}): {self.groups} groups,"
            f" {self.committed} committed, {self.aborted} aborted, {self.deleted} deleted; {self.bytes_read} bytes read"
            f" back; {len(self.problems)} problems"
        )


class Examination:
    """What a machine with an empty store finds."""

    def __init__(self, field: Field, report: Report) -> None:
        self._field, self._report = field, report
        self._store = field.store("examination")
        self._directory = Path(field.top) / "out"

    def work(self) -> None:
        self._directory.mkdir()
        numbers = {self._field.group(number): number for number in range(self._field.limit())}
        self._report.groups = len(numbers)
        offered = {one.group: one for one in self._store.list(JOB)}
        said = self._said(numbers)
        for group, number in numbers.items():
            standing = self._store.standing(JOB, group)
            verdicts = said.get(number, set())
            if len(verdicts) > 1:
                self._report.problems.append(f"group {number} was seen decided in two ways: {sorted(verdicts)}")
            if standing.state in (GroupState.PARTIAL, GroupState.ABSENT):
                self._report.problems.append(f"group {number} is not decided")
            elif standing.state is GroupState.REPLICATED:
                self._compare(number, group, verdicts, offered.keys())
            elif standing.state is GroupState.ABORTED:
                self._report.aborted += 1
                if any(verdict == "commit" for verdict, _ in verdicts):
                    self._report.problems.append(f"group {number} was committed, and is aborted")
            else:
                self._report.deleted += 1
        if not self._report.committed:
            self._report.problems.append("no group was committed: the ordeal has shown nothing")
        self._report.problems += self._store.problems

    def _said(self, numbers: dict[str, int]) -> dict[int, set[tuple[str, str]]]:
        """What anybody ever saw of each group, besides that it was deleted."""
        found: dict[int, set[tuple[str, str]]] = {}
        for who in [*(f"rank-{rank}" for rank in range(self._field.nodes)), "janitor"]:
            for number, verdict, id_ in seen(self._field.ledger(who)):
                if verdict in ("commit", "abort"):
                    found.setdefault(number, set()).add((verdict, id_))
        return found

    def _compare(self, number: int, group: str, verdicts: set[tuple[str, str]], offered: Collection[str]) -> None:
        """A committed group has each byte of each rank, and is offered."""
        self._report.committed += 1
        problems = self._report.problems
        if ("abort", "-") in verdicts:
            problems.append(f"group {number} was aborted, and is committed")
        if group not in offered:
            problems.append(f"group {number} is committed, and not offered")
        wanted: dict[str, bytes] = {}
        for rank in range(self._field.nodes):
            wanted |= self._field.content(number, rank)
        try:
            found = self._read(group)
        except FuseCkptError as error:
            problems.append(f"group {number} cannot be read: {error}")
            return
        if found != wanted:
            problems.append(f"group {number} has other bytes than were saved: {sorted(found)}")

    def _read(self, group: str) -> dict[str, bytes]:
        found = {}
        for file in self._store.read(JOB, group).files:
            self._store.fetch_file(JOB, file, self._directory / "file")
            found[file.path] = (self._directory / "file").read_bytes()
            self._report.bytes_read += file.size
        return found
