"""The half of the store that knows of jobs: their directories, their runs, and who serves them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import uuid_utils
from msgspec.structs import replace

from fuse_ckpt.errors import JobMounted, UnknownJob
from fuse_ckpt.model import Job, Provenance, Replication, Run, RunStatus, check_job_name

from . import locks
from .durable import make_directory
from .index import Index
from .layout import Layout
from .locks import Lock
from .records import Records
from .retention import NO_POLICY, parse_policy

LOCK_TRIES = 5  # `job_locked` of another process holds the lock for a few microseconds
POLL = 0.05  # seconds


class Jobs:
    """Jobs and runs of the store at `layout`; see `Store` for what all methods have in common."""

    def __init__(self, layout: Layout, index: Index) -> None:
        self.layout = layout
        self._index = index

    @property
    def index(self) -> Index:
        """The records themselves, for this room alone."""
        return self._index

    def ensure_job(self, name: str, now_ns: int) -> Job:
        """The job of that name, made (with its working tree) where it is missing. Errors: InvalidJobName."""
        make_directory(self.layout.job(name))
        make_directory(self.layout.work(name), 0o755)
        make_directory(self.layout.pending(name))

        def work(records: Records) -> Job:
            job = records.job(name)
            if job is None:
                job = Job(name, now_ns)
                records.put_job(job)
            return job

        return self._index.write(work)

    def set_rules(
        self, name: str, retain: str | None = None, trash_ttl_ns: int | None = None, min_free: int | None = None
    ) -> Job:
        """Record what a job's mounts remove by themselves; None leaves it as it is, NO_POLICY and 0 bytes take it back.

        Errors: UnknownJob, InvalidPolicy.
        """
        if retain is not None and retain != NO_POLICY:
            parse_policy(retain)

        def work(records: Records) -> Job:
            job = _known_job(name, records.job(name))
            if retain is not None:
                job = replace(job, retain=None if retain == NO_POLICY else retain)
            if trash_ttl_ns is not None:
                job = replace(job, trash_ttl_ns=trash_ttl_ns)
            if min_free is not None:
                job = replace(job, min_free=min_free or None)
            records.put_job(job)
            return job

        nothing = retain is None and trash_ttl_ns is None and min_free is None
        return self.job(name) if nothing else self._index.write(work)

    def note_units(self, name: str, globs: tuple[str, ...]) -> None:
        """Record by which globs a mount tells the job's units, for whoever commits without one. Errors: UnknownJob."""
        if self.job(name).units != globs:
            self._index.write(
                lambda records: records.put_job(replace(_known_job(name, records.job(name)), units=globs))
            )

    def job(self, name: str) -> Job:
        """Errors: UnknownJob."""
        return _known_job(name, self._index.read(lambda records: records.job(name)))

    def jobs(self) -> list[Job]:
        """All jobs, by name."""
        return self._index.read(Records.jobs)

    def begin_run(
        self,
        job: str,
        command: Sequence[str],
        started_ns: int,
        node: str = "0",
        parent: str | None = None,
        provenance: Provenance | None = None,
        replication: Replication | None = None,
    ) -> Run:
        """Record that a run of `job` begins. Errors: UnknownJob."""
        run = Run(
            str(uuid_utils.uuid7()), job, tuple(command), started_ns, RunStatus.IN_PROGRESS, node, parent,
            provenance=provenance, replication=replication,
        )  # fmt: skip

        def work(records: Records) -> Run:
            _known_job(job, records.job(job))
            records.put_run(run)
            return run

        return self._index.write(work)

    def end_run(self, run: Run, ended_ns: int, exit_code: int | None, status: RunStatus) -> Run:
        """Record how `run` ended."""
        ended = replace(run, ended_ns=ended_ns, exit_code=exit_code, status=status)
        self._index.write(lambda records: records.put_run(ended))
        return ended

    def drop_run(self, run: Run) -> None:
        """Forget a run that never began."""
        self._index.write(lambda records: records.drop_run(run))

    def runs(self, job: str) -> list[Run]:
        """The runs of a job, oldest first."""
        return self._index.read(lambda records: records.runs(job))

    def lock_job(self, job: str) -> Lock:
        """Own a job's working tree until the lock is closed. `note` where it is mounted. Errors: JobMounted."""
        path = self._job_lock_path(job)
        for attempt in range(LOCK_TRIES):
            lock = locks.try_exclusive(path)
            if lock is not None:
                lock.note("")
                return lock
            if attempt < LOCK_TRIES - 1:
                time.sleep(POLL / LOCK_TRIES)
        where = locks.read_note(path)
        raise JobMounted(f"Job {job} is mounted already{f' at {where}' if where else ''}: umount it there first.")

    def job_locked(self, job: str) -> bool:
        """Whether a daemon serves the job now."""
        return locks.is_held(self._job_lock_path(job))

    def job_note(self, job: str) -> str:
        """What the holder of the job's lock noted; "" where nobody holds it."""
        return locks.read_note(self._job_lock_path(job)) if self.job_locked(job) else ""

    def wait_unlocked(self, job: str, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the job's lock to be free; return whether it is."""
        deadline = time.monotonic() + timeout
        while self.job_locked(job):
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL)
        return True

    def _job_lock_path(self, job: str) -> Path:
        return self.layout.lock(f"job-{check_job_name(job)}")


def _known_job(name: str, found: Job | None) -> Job:
    if found is None:
        raise UnknownJob(name)
    return found
