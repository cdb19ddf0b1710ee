"""The losses of jobs over their steps: what a plot shows, put together from checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from fuse_ckpt.cli import formats
from fuse_ckpt.cli.ancestry import Ancestry, Branch

if TYPE_CHECKING:
    from fuse_ckpt.metadata import History
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Store

Points = Sequence[tuple[int, float]]
HISTORY = "trainer_state.json"
_HISTORIES = 20  # checkpoints of a run, the newest ones, in which it is looked for


@dataclass(frozen=True)
class Mark:
    """A checkpoint at its step."""

    step: int
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Curve:
    """The losses of jobs that continue each other, by step. `jobs`: the first one first."""

    jobs: tuple[str, ...]
    train: Points = ()
    eval: Points = ()
    marks: Sequence[Mark] = ()

    @property
    def label(self) -> str:
        return formats.visible(" → ".join(self.jobs))

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in (*self.train, *self.eval)]

    @property
    def losses(self) -> list[float]:
        return [loss for _, loss in (*self.train, *self.eval)]


def curves(store: Store, jobs: Sequence[str]) -> list[Curve]:
    """A curve for each job, its ancestors' steps before it; a job that another one continues has none of its own.

    Raises UnknownJob.
    """
    ancestry = Ancestry(store)
    lines = [_line(ancestry, store.job(job).name) for job in dict.fromkeys(jobs)]
    found = [_curve(store, line) for line in lines]
    return [one for one in found if not any(one is not other and _continues(other, one) for other in found)]


def _continues(longer: Curve, shorter: Curve) -> bool:
    return len(longer.jobs) > len(shorter.jobs) and longer.jobs[: len(shorter.jobs)] == shorter.jobs


@dataclass(frozen=True)
class _Segment:
    """What one branch gave to a line: the checkpoints that it saved until the one that was resumed from."""

    job: str
    saved: Sequence[Checkpoint]


def _line(ancestry: Ancestry, job: str) -> tuple[str, list[_Segment]]:
    """The segments that led to the job's newest checkpoint, the first one first.

    A run without a parent is taken for the continuation of the job's run before: it found its output directory.
    """
    branches = [branch for branch in ancestry.branches(job) if branch.saved]
    segments: list[_Segment] = []
    branch = max(branches, key=lambda one: one.saved[-1].id, default=None)
    until = None
    seen: set[int] = set()
    while branch is not None and id(branch) not in seen:
        seen.add(id(branch))
        kept = [one for one in branch.saved if one.state == "available" and (until is None or one.id <= until)]
        segments.append(_Segment(branch.job, kept))
        parent = ancestry.find(branch.parent) if branch.parent else None
        until = parent.id if parent else None
        branch = ancestry.branch_of(parent) if parent else None if branch.parent else _before(ancestry, branch)
    return job, segments[::-1]


def _before(ancestry: Ancestry, branch: Branch) -> Branch | None:
    earlier = [one for one in ancestry.branches(branch.job) if one.started_ns < branch.started_ns and one.saved]
    return earlier[-1] if earlier else None


def _curve(store: Store, line: tuple[str, list[_Segment]]) -> Curve:
    job, segments = line
    jobs = tuple(dict.fromkeys([*(segment.job for segment in segments), job]))
    whole = Curve(jobs)
    for segment in reversed(segments):
        whole = _continued(_part(store, segment, before=min(whole.steps, default=None)), whole)
    return whole


def _continued(earlier: Curve, later: Curve) -> Curve:
    """Both as one: what the later part went over again replaces what it rolled back."""
    first = min(later.steps, default=math.inf)
    marked = min((mark.step for mark in later.marks), default=math.inf)
    return Curve(
        later.jobs,
        [*(point for point in earlier.train if point[0] < first), *later.train],
        [*(point for point in earlier.eval if point[0] < first), *later.eval],
        [*(mark for mark in earlier.marks if mark.step < marked), *later.marks],
    )


def _part(store: Store, segment: _Segment, before: int | None) -> Curve:
    """What a segment tells of the steps before `before`: the newest history in it, else its checkpoints' own losses."""
    marks = [Mark(one.metadata.step, one) for one in segment.saved if one.metadata.step is not None]
    if before is not None and all(mark.step >= before for mark in marks):
        return Curve((), marks=marks)  # a later history covers it: a run that went on a thousand times is read once
    for one in islice(reversed(segment.saved), _HISTORIES):
        history = _history(store, one)
        if history is not None and (history.train or history.eval):
            return Curve((), history.train, history.eval, marks)
    losses = [(mark.step, mark.checkpoint.metadata) for mark in marks]
    return Curve(
        (),
        _by_step((step, said.train_loss) for step, said in losses),
        _by_step((step, said.eval_loss) for step, said in losses),
        marks,
    )


def _by_step(losses: Iterable[tuple[int, float | None]]) -> Points:
    known = {step: loss for step, loss in losses if loss is not None and math.isfinite(loss)}
    return sorted(known.items())


def _history(store: Store, checkpoint: Checkpoint) -> History | None:
    """The losses in the checkpoint's trainer_state.json; None where it has none that can be read."""
    entries = store.manifest(checkpoint.id).entries
    digest = next((entry.digest for entry in entries if entry.path == HISTORY and entry.digest), None)
    if digest is None:
        return None
    from fuse_ckpt.metadata import loss_history

    with contextlib.suppress(OSError, ValueError):
        return loss_history(lambda: store.blob_path(digest).open("rb"))
    return None
