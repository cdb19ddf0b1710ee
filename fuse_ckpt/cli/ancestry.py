"""Which run was resumed from what: runs as branches that grow out of checkpoints.

Whatever the records say, every branch is visited once: a cycle, or a parent that nobody knows, ends a line.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fuse_ckpt.errors import UnknownCheckpoint

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint, Run
    from fuse_ckpt.store import Store


@dataclass(eq=False)
class Branch:
    """A run and what it saved, deleted checkpoints too, in order. Without a `run`: the job was mounted by hand, or
    the run's record is lost; without a `job`: it was pushed."""

    job: str
    run: Run | None
    parent: str | None  # id of the checkpoint that it was resumed from
    saved: list[Checkpoint] = field(default_factory=list)
    children: list[Branch] = field(default_factory=list)  # those that were resumed from any of `saved`

    @property
    def started_ns(self) -> int:
        return self.run.started_ns if self.run else self.saved[0].created_ns if self.saved else 0


class Ancestry:
    """The branches of a store. Only the jobs that are asked for are read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: dict[str, dict[str, Branch]] = {}
        self._deleted: dict[str, Checkpoint] | None = None
        self._served: dict[str, str | None] = {}  # job → id of the run that may run now

    def branches(self, job: str) -> list[Branch]:
        """The branches of a job, by the time of their start."""
        return sorted(self._of_job(job).values(), key=lambda branch: branch.started_ns)

    def branch_of(self, checkpoint: Checkpoint) -> Branch:
        """The branch that a checkpoint was saved in."""
        return self._of_job(checkpoint.job)[_key(checkpoint)]

    def find(self, checkpoint: str) -> Checkpoint | None:
        """The checkpoint of an id, also a deleted one; None where nothing is left of it."""
        try:
            return self._store.checkpoint(checkpoint)
        except UnknownCheckpoint:
            if self._deleted is None:
                from fuse_ckpt.model import State

                self._deleted = {one.id: one for one in self._store.checkpoints(states={State.DELETED})}
            return self._deleted.get(checkpoint)

    def is_served(self, branch: Branch) -> bool:
        """Whether the branch's run may be the one that runs now."""
        if branch.job not in self._served:
            served = self._store.job_locked(branch.job)
            self._served[branch.job] = self._store.runs(branch.job)[-1].id if served else None
        return branch.run is not None and self._served[branch.job] == branch.run.id

    def tree(self, branch: Branch) -> list[Branch]:
        """The roots of all that is related to `branch`, with `children` filled in. More than one root: all of them
        were resumed from a checkpoint of which nothing is left."""
        root = list(self._climb(branch))[-1]
        by_parent = self._by_parent()
        gone = root.parent is not None and self.find(root.parent) is None
        roots = [self._of_job(job)[key] for job, key in by_parent[root.parent or ""]] if gone else [root]
        seen = {id(one) for one in roots}
        growing = deque(roots)
        while growing:
            one = growing.popleft()
            for job, key in (each for saved in one.saved for each in by_parent.get(saved.id, ())):
                child = self._of_job(job)[key]
                if id(child) not in seen:
                    seen.add(id(child))
                    one.children.append(child)
                    growing.append(child)
            one.children.sort(key=lambda child: child.started_ns)
        return roots

    def _climb(self, branch: Branch) -> Iterator[Branch]:
        """The branch, the one that it was resumed from, and so on."""
        seen: set[int] = set()
        while id(branch) not in seen:
            seen.add(id(branch))
            yield branch
            parent = self.find(branch.parent) if branch.parent else None
            if parent is None:
                return
            branch = self.branch_of(parent)

    def _of_job(self, job: str) -> dict[str, Branch]:
        if job not in self._jobs:
            from fuse_ckpt.model import State

            found = {run.id: Branch(job, run, run.parent) for run in self._store.runs(job)}
            for one in self._store.checkpoints(job, states=set(State)):
                found.setdefault(_key(one), Branch(job, None, one.parent)).saved.append(one)
            self._jobs[job] = found
        return self._jobs[job]

    def _by_parent(self) -> dict[str, list[tuple[str, str]]]:
        """(job, key) of the branches that were resumed from a checkpoint, by its id. Of jobs that have runs, those that
        were mounted by hand are found only where the job is in the tree already: all else would be read in vain."""
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for job in self._store.jobs():
            runs = self._store.runs(job.name)
            known = {run.id: run.parent for run in runs}
            if job.name in self._jobs or (not runs and self._store.resumed(job.name)):
                known = {key: branch.parent for key, branch in self._of_job(job.name).items()}
            for key, parent in known.items():
                if parent is not None:
                    found[parent].append((job.name, key))
        return found


def _key(checkpoint: Checkpoint) -> str:
    if not checkpoint.job:  # pushed: each came from somewhere else
        return checkpoint.id
    return checkpoint.run or f"by hand from {checkpoint.parent}"
