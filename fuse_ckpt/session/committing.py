"""`checkpoint commit`: what is pending is finished now, by the job's daemon, or by this process where there is none."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import msgspec
import trio
from msgspec import Struct

from fuse_ckpt.errors import CommitFailed
from fuse_ckpt.session import control
from fuse_ckpt.session.workplace import take_up
from fuse_ckpt.staging import Drained, Settings
from fuse_ckpt.store import Store

QUESTION = "commit "  # and the NAME as JSON, or null for all


class CommitAnswer(Struct, frozen=True):
    """What was committed (ids, in this order), and what is left: NAME → why. `held`: those that are still written."""

    committed: tuple[str, ...] = ()
    left: dict[str, str] = {}
    held: tuple[str, ...] = ()


def answer_of(drained: Drained) -> CommitAnswer:
    return CommitAnswer(tuple(one.id for one in drained.committed), drained.left, drained.held)


def commit(store: Path, job: str, name: str | None) -> CommitAnswer:
    """Commit what the job (or its unit of that NAME) has pending, and return when that is done.

    Raises UnknownJob, StoreUnusable, JobMounted, CommitFailed (its daemon does not answer).
    """
    with Store.open(store, create=False) as opened:
        opened.job(job)
        if not opened.job_locked(job):
            return _commit_here(opened, job, name)
        answer = control.ask(opened.layout.control(job), QUESTION + json.dumps(name), patience=None)
        if answer is None or "error" in answer:
            said = answer["error"] if answer else "it does not answer"
            raise CommitFailed(f"The daemon of job {job} has committed nothing: {said} (see {_log(opened, job)}).")
        return msgspec.convert(answer, CommitAnswer)


def _log(store: Store, job: str) -> Path:
    return store.layout.job(job) / "daemon.log"


def _commit_here(store: Store, job: str, name: str | None) -> CommitAnswer:
    """As the next mount would, without mounting."""
    with ExitStack() as stack:
        lock = stack.enter_context(store.lock_job(job))
        lock.note("(checkpoint commit)")
        known = store.job(job)
        part = None if known.replication is None else known.replication.part
        runs = tuple((run.started_ns, run.id) for run in store.runs(job))
        place = take_up(store, job, Settings(known.units, part=part, runs=runs), stack)
        for unit in list(place.area.drafts):
            if name not in (None, unit.name):
                place.area.drafts.drop(unit)  # left in the tree, where the next mount finds it

        async def drain() -> Drained:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(place.committer.run)
                drained = await place.committer.drain(name)
                nursery.cancel_scope.cancel()
            return drained

        return answer_of(trio.run(drain))
