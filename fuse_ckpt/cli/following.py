"""`checkpoint wait` and `checkpoint watch`: what happens to checkpoints, as it happens.

Both look at the index's generation, which costs microseconds, and read records only where it has risen: they need no
daemon, and go on through its end and its next start.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from fuse_ckpt.cli import access, changes, formats, listing, render
from fuse_ckpt.cli.hooks import Hook, View
from fuse_ckpt.cli.settings import Settings
from fuse_ckpt.errors import NotFound, NotReached, UnknownCheckpoint, UnknownJob

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Store

LOOK = 0.1  # seconds between two looks at the generation
PENDING_LOOK = 1.0  # seconds between two questions to the job's daemon, which has training to serve
JOB_PATIENCE = 10.0  # seconds for a job to appear whose `training run` was started just before us
SHARE = 4  # a look that takes long is followed by a pause of so many times its length
_ID_LIKE = re.compile(r"[0-9a-fA-F-]{4,}")
_ENDING = (signal.SIGINT, signal.SIGTERM)


@click.command("wait", short_help="Wait until one is available.")
@click.argument("reference", metavar="REF")
@click.option(
    "--status",
    type=click.Choice(["available", "replicated"]),
    default="available",
    show_default=True,
    help="What to wait for; replicated: it is in an object store, whole.",
)
@click.option(
    "--timeout", type=click.FloatRange(min=0), default=1800, show_default=True, metavar="S", help="Seconds to wait."
)
@click.option("--json", "as_json", is_flag=True, help="Print its record as JSON instead of its id.")
@click.pass_obj
def wait(settings: Settings, reference: str, status: str, timeout: float, as_json: bool) -> None:
    """Wait until a checkpoint is available, or replicated, then print its id.

    REF may name what is not there yet: JOB/NAME, JOB/NAME@N, JOB:latest, JOB:best, a tag, a pushed checkpoint. A job
    that is not there has 10 seconds to appear; an id that is not there is an error at once, and so is a checkpoint that
    failed.
    """
    deadline = time.monotonic() + timeout
    patience = 0 if _ID_LIKE.fullmatch(reference) else min(timeout, JOB_PATIENCE)
    with ExitStack() as stack:
        store = _appearing_store(stack, settings, lambda found: _find_anything(found, reference), patience)
        while True:
            generation = store.generation()
            found = _available(store, reference)
            if found is not None and (status == "available" or _is_replicated(store, found)):
                break
            if not _await_change(store, generation, deadline):
                raise NotReached(f"{reference} is not {status} after {timeout:g} s{_hint(_job_of(reference))}.")
    click.echo(render.to_json(listing.record(found)) if as_json else found.id)


def _hint(job: str | None) -> str:
    if not job:
        return ': "fuse-ckpt checkpoint list" tells what there is, and a longer --timeout waits on'
    return f': "fuse-ckpt training checkpoints {job} --all --wide" tells what is pending or failed'


def _job_of(reference: str) -> str | None:
    """The job that a reference names; None for ids, tags and pushed checkpoints."""
    before, colon, word = reference.rpartition(":")
    if colon and word in ("latest", "best") and "/" not in before:
        return before
    job, slash, _ = reference.partition("/")
    return job if slash else None


def _available(store: Store, reference: str) -> Checkpoint | None:
    """The checkpoint, once it is available; None while it may still come. Raises NotReached, UnknownCheckpoint."""
    try:
        found = store.resolve(reference)
    except UnknownCheckpoint:
        if _ID_LIKE.fullmatch(reference):  # an id is made up when its checkpoint is there
            raise
        return None
    if found.state == "failed":
        raise NotReached(f"{found.id} ({found.place}) failed: {found.failure}.")
    return found if found.state == "available" else None


def _is_replicated(store: Store, found: Checkpoint) -> bool:
    """Raises NotReached where it never will be."""
    replica = store.replica(found.id)
    if replica is not None and replica.is_over and replica.stage != "replicated":
        raise NotReached(f"The copy of {found.id} in {replica.storage} is {replica.stage}: {replica.reason}.")
    job = store.job(found.job) if replica is None and found.job else None
    if replica is None and (job is None or job.replication is None):
        raise NotReached(f"{found.id} is copied to no object store: training run --replicate, storage sync --job.")
    return replica is not None and replica.stage == "replicated"


def _await_change(store: Store, generation: int, deadline: float) -> bool:
    """Sleep until the index has changed since `generation`; False where the deadline comes first."""
    while store.generation() == generation:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(LOOK, left))
    return True


def _appearing_store(
    stack: ExitStack, settings: Settings, look: Callable[[Store | None], object], patience: float
) -> Store:
    """The store, once `look` does not raise NotFound: a run that was started just before us may not have begun yet."""
    deadline = time.monotonic() + patience
    while True:
        last = time.monotonic() >= deadline
        store = _store_with(stack, settings, look, last=last)
        if store is not None:
            return store
        time.sleep(LOOK)


def _store_with(
    stack: ExitStack, settings: Settings, look: Callable[[Store | None], object], *, last: bool
) -> Store | None:
    """The store, kept open by `stack`, if `look` finds what it looks for; else None, or at `last` what it raises."""
    with ExitStack() as attempt:
        store = attempt.enter_context(access.existing_store(settings))
        try:
            look(store)
        except NotFound:
            if last:
                raise
            return None
        stack.push(attempt.pop_all())
        return store


def _find_job(store: Store | None, job: str) -> None:
    """Raises UnknownJob."""
    if store is None:
        raise UnknownJob(job)
    store.job(job)


def _find_anything(store: Store | None, reference: str) -> None:
    """Whether it makes sense to wait for `reference`. Raises UnknownJob, UnknownCheckpoint."""
    job = _job_of(reference)
    try:
        if store is not None:
            store.resolve(reference)
    except UnknownCheckpoint:
        if job is None and not _ID_LIKE.fullmatch(reference):
            return
        if job is None:
            raise
        _find_job(store, job)
    if store is None:
        raise UnknownJob(job) if job is not None else UnknownCheckpoint(reference)


@click.command("watch", short_help="Tell what happens to a job's.")
@click.argument("job")
@click.option("--exec", "command", metavar="COMMAND", help="Run it for each one that becomes available.")
@click.option(
    "--since",
    type=click.Choice(["now", "all"]),
    default="now",
    show_default=True,
    help="all: tell first of what is there already.",
)
@click.option("--from", "start", metavar="REF", help="Tell first of what is newer than this checkpoint.")
@click.option("--until-end", is_flag=True, help="End when the job's run has ended and everything is told.")
@click.pass_obj
def watch(settings: Settings, job: str, command: str | None, since: str, start: str | None, until_end: bool) -> int:
    """Print a line of JSON for each event of a job's checkpoints, until a signal ends it (130 or 143).

    The events are pending, available, failed, amended, deleted and restored. COMMAND is run by sh, for one checkpoint
    at a time; {id}, {name} and {path} in it stand for the checkpoint's, quoted as needed, and so do the variables
    FUSE_CKPT_ID, FUSE_CKPT_NAME, FUSE_CKPT_PATH. The path is a directory with its files, read-only, on a mount that
    goes when the watch does. The checkpoint cannot be deleted meanwhile. COMMAND's standard output goes to standard
    error. That it fails is told, and the next one is run.
    """
    if start is not None and since == "all":
        raise click.UsageError("--from and --since say where to begin: give one of them.")
    from fuse_ckpt.model import check_job_name

    check_job_name(job)
    with ExitStack() as stack:
        store = _appearing_store(stack, settings, lambda found: _find_job(found, job), JOB_PATIENCE)
        view = View(command, store, _say)
        stack.callback(view.close)
        waits = stack.enter_context(_signals())
        hook = Hook(command, store, settings.environment, view, _say)
        stack.callback(hook.close)
        watching = _Watch(store, job, _told_before(store, job, since, start))
        while True:
            over = until_end and watching.is_over()  # before the look: nothing is committed after the end
            _tell(watching.look(), hook)
            hook.turn()
            if over and hook.idle:
                return 0
            signalled = waits(watching.pause)
            if signalled:
                return 128 + signalled


def _say(line: str) -> None:
    click.echo(formats.visible(line), err=True)


def _tell(events: Sequence[changes.Event], hook: Hook) -> None:
    for event in events:
        click.echo(render.to_json_line(event.record))
        if event.kind == "available" and event.checkpoint is not None:
            hook.add(event.checkpoint)


def _told_before(store: Store, job: str, since: str, start: str | None) -> changes.Seen:
    """What is not to be told: all that is there now, or what is not newer than `start`, or only what is deleted."""
    first = store.resolve(start).id if start is not None else None
    past = [
        one
        for one in _all(store, job)
        if one.state == "deleted" or (since == "now" and first is None) or (first is not None and one.id <= first)
    ]
    return changes.Seen({one.id: one for one in past})


def _all(store: Store, job: str) -> list[Checkpoint]:
    from fuse_ckpt.model import State

    return store.checkpoints(job, states=set(State))


class _Watch:
    """A job under watch. `pause`: seconds until the next look makes sense."""

    def __init__(self, store: Store, job: str, seen: changes.Seen) -> None:
        self._store = store
        self._job = job
        self._seen = seen
        self._generation = -1
        self._asked = -PENDING_LOOK
        self._unlocked_since: float | None = None
        self.pause = LOOK

    def look(self) -> list[changes.Event]:
        """What has happened since the last look."""
        began = time.monotonic()
        generation = self._store.generation()
        asks = began - self._asked >= PENDING_LOOK
        if generation == self._generation and not asks:
            return []
        units = access.pending(self._store, self._job) if asks else None
        changed = generation != self._generation
        records = _all(self._store, self._job) if changed else self._seen.checkpoints.values()
        told, self._seen = changes.events(self._job, self._seen, units, records)
        self._generation = generation
        self._asked = began if asks else self._asked
        self.pause = max(LOOK, SHARE * (time.monotonic() - began))
        return told

    def is_over(self) -> bool:
        """Whether the job's newest run has ended, or whoever served the job has died."""
        if self._store.job_locked(self._job):
            self._unlocked_since = None
            return False
        runs = self._store.runs(self._job)
        if runs and runs[-1].ended_ns is not None:
            return True
        now = time.monotonic()  # a run is recorded some time before its daemon has the lock
        self._unlocked_since = self._unlocked_since or now
        return now - self._unlocked_since >= JOB_PATIENCE


@contextmanager
def _signals() -> Iterator[Callable[[float], int]]:
    """A function that sleeps for some seconds or until a child ends; it returns the signal that is to end us, or 0."""
    waited = {*_ENDING, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)

    def wait_for(seconds: float) -> int:
        heard = signal.sigtimedwait(waited, seconds)
        return heard.si_signo if heard is not None and heard.si_signo in _ENDING else 0

    try:
        yield wait_for
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
