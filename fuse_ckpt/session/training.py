"""`training run`: mount, expose the input, run the command, commit, unmount.

The mount is served by a daemon of its own, so that whatever still reads it at the end, and whatever becomes of this
process, cannot end it. This process is one thread that waits for signals and for its children, and nothing else.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fuse_ckpt.errors import (
    FuseCkptError,
    JobExists,
    MountFailed,
    NotExecutable,
    NotStarted,
    NotThere,
)
from fuse_ckpt.fuse import mount
from fuse_ckpt.model import Run, RunStatus
from fuse_ckpt.session import control, daemon, replicating
from fuse_ckpt.session.inputs import accept, chosen_input, find_input
from fuse_ckpt.session.options import Finished, Mounted, MountOptions
from fuse_ckpt.session.provenance import Sources
from fuse_ckpt.store import Store

OUTPUT_VARIABLE = "FLEXAI_OUTPUT_CHECKPOINT_DIR"
INPUT_VARIABLE = "FLEXAI_INPUT_CHECKPOINT_DIR"

_SI_KERNEL = 128  # si_code of a signal that a terminal sent to the whole process group
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}

Report = Callable[[str], None]


def run_training(
    options: MountOptions,
    command: Sequence[str],
    *,
    checkpoint: str | None,
    if_any: bool,
    force: bool,
    restart: bool,
    environment: Mapping[str, str],
    report: Report,
    drain: bool = True,
    prefetch: bool = False,
) -> Finished:
    """Run `command` with the job mounted, and return when it has ended and what it saved is committed.

    `environment` is the command's; the two variables are set in it, and where they are set already, that is where the
    job is mounted and the input bound. Raises FuseCkptError before the command has begun, never after; for a command
    that is not there, before anything is made. `drain`: wait at the end until all is copied to where the job replicates
    to. `prefetch`: have all of the input here before the command begins.
    """
    job = options.job or ""
    with Sources.here() as sources, Store.open(options.store) as store:
        program = _find(command[0], environment)
        _refuse(store, options, restart)
        parent = chosen_input(checkpoint, if_any, force, lambda one: find_input(store, one, report, whole=prefetch))
        accept(store, checkpoint or "", parent, force, report)
        _refuse(store, options, restart)  # again: the fetch may have taken an hour
        known = store.ensure_job(job, time.time_ns())
        came_from = (parent.id if parent else None, sources.provenance(program), options.replication(known.replication))
        run = store.begin_run(job, command, time.time_ns(), options.node, *came_from)
        options = msgspec.structs.replace(options, parent=run.parent, run=run.id, supervisor=os.getpid())
        try:
            mounted = daemon.start(store, options)
        except BaseException:
            store.drop_run(run)
            raise
        report(f"mounted at {mounted.mountpoint}, checkpoints in {mounted.mountpoint}/.checkpoints")
        return _Session(store, options, mounted, run, report, drain).run(program, command, dict(environment))


def _refuse(store: Store, options: MountOptions, restart: bool) -> None:
    """Refuse what costs nothing to know. Errors: JobExists, and as `daemon.prepare`."""
    job = options.job or ""
    if not restart and job in {known.name for known in store.jobs()} and any(map(_began, store.runs(job))):
        raise JobExists(job)
    daemon.prepare(store, options)


def _find(program: str, environment: Mapping[str, str]) -> str:
    """The path of the program. Raises NotThere or NotExecutable."""
    found = shutil.which(program, path=environment.get("PATH"))
    if found is not None:
        return found
    if "/" in program and os.path.exists(program):
        raise NotExecutable(f"The command {program!r} cannot be executed: is it a program, and chmod +x?")
    raise NotThere(f"There is no command {program!r}: check its spelling and the PATH.")


def _began(run: Run) -> bool:
    """Whether the run's command began; a run that never did is no reason to refuse the next."""
    return run.exit_code != NotStarted.exit_code


class _Session:
    """One run, from the mount that is ready to the mount that is gone."""

    def __init__(
        self, store: Store, options: MountOptions, mounted: Mounted, run: Run, report: Report, drain: bool
    ) -> None:
        self._store = store
        self._options = options
        self._mounted = mounted
        self._run = run
        self._report = report
        self._drain = drain  # no more, once a signal has told the command to end
        self._problems: list[str] = []
        self._bound: Path | None = None

    def run(self, program: str, command: Sequence[str], environment: dict[str, str]) -> Finished:
        exit_code, status = NotStarted.exit_code, RunStatus.FAILED
        try:
            self._expose(environment)
            exit_code, status = self._execute(program, command, environment)
        finally:
            drained = self._end(exit_code, status)
        return Finished(exit_code, self._run, self._mounted.mountpoint, drained, tuple(self._problems))

    def _end(self, exit_code: int, status: RunStatus) -> bool:
        """Finish and record; whatever goes wrong now is a problem to tell, the command's exit code stands."""
        try:
            with _patient(self._report):
                drained = self._finish()
            self._run = self._store.end_run(self._run, time.time_ns(), exit_code, status)
        except (FuseCkptError, OSError, KeyboardInterrupt) as exc:
            self._problems.append(f"the run ended, but {exc or 'its end was not waited for'}")
            return False
        return drained

    def _expose(self, environment: dict[str, str]) -> None:
        """Set the two variables; bind the input where the environment names a place for it."""
        environment[OUTPUT_VARIABLE] = str(self._mounted.mountpoint)
        place = environment.pop(INPUT_VARIABLE, None)
        if self._options.parent is None:
            return
        source = self._mounted.mountpoint / ".checkpoints" / "by-id" / self._options.parent
        environment[INPUT_VARIABLE] = str(source)
        if place is None:
            return
        try:
            Path(place).mkdir(parents=True, exist_ok=True)
            mount.bind_read_only(source, Path(place))
        except (MountFailed, OSError) as exc:
            self._report(f"{exc} {INPUT_VARIABLE} names {source} instead.")
            return
        self._bound = Path(place)
        environment[INPUT_VARIABLE] = place

    def _execute(self, program: str, command: Sequence[str], environment: dict[str, str]) -> tuple[int, RunStatus]:
        """Run the command, forward signals, and reap whatever else ends meanwhile (in a container we are pid 1)."""
        waited = _FORWARDED | {signal.SIGCHLD}
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by some starters; then no child's end is ever told
        before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
        path = self._store.layout.control(self._run.job)

        def before_command() -> None:
            """In the child: the daemon knows of it before it does anything, whatever becomes of us."""
            control.ask(path, f"command {os.getpid()}")
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        try:
            try:
                child = subprocess.Popen(command, executable=program, env=environment, preexec_fn=before_command)
            except OSError as exc:
                self._problems.append(f"the command {command[0]!r} cannot be started: {exc.strerror}")
                return NotExecutable.exit_code, RunStatus.FAILED
            code = _wait(child, waited, lambda: control.ask(path, f"died {child.pid}"), self._heard)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if code < 0:
            return 128 - code, RunStatus.INTERRUPTED
        return code, RunStatus.SUCCEEDED if code == 0 else RunStatus.FAILED

    def _heard(self, number: int) -> None:
        if number in _ENDING:  # whoever wants the command to end does not want us to go on for an hour
            self._drain = False

    def _finish(self) -> bool:
        """Commit what is pending, take input and mount away; False where something is left for the next mount."""
        path = self._store.layout.control(self._run.job)
        if self._bound is not None:
            mount.detach(self._bound, lazy=True)
        answer = control.ask(path, "commit", patience=None)
        if answer is None:
            self._problems.append("the daemon has gone: what is pending is committed at the next mount of this job")
            mount.detach(self._mounted.mountpoint, lazy=True)
            return False
        statistics = answer.get("statistics", {})
        if statistics.get("stuck"):
            self._problems.append(f"not committed, kept for the next mount: {statistics['last_error']}")
        if statistics.get("failed"):
            self._problems.append(f"{statistics['failed']} not whole, kept as failed (training checkpoints --all)")
        if self._drain:
            replicating.drain(self._store, self._run.job, self._report)
        self._unmount(path)
        if not self._drain:
            replicating.tell_rest(self._store, self._run.job, self._report)
        return not statistics.get("stuck") and not answer.get("drafts")

    def _unmount(self, path: Path) -> None:
        answer = control.ask(path, "unmount", patience=None)
        if answer is not None and "busy" in answer:
            self._problems.append("programs of the run still use the mount: it goes when they have ended")
            return
        if answer is not None and answer.get("unmounted") is False:
            self._problems.append(
                "still bound elsewhere, perhaps in a container: its daemon serves it until that is unmounted"
            )
            return
        if not self._store.wait_unlocked(self._run.job, daemon.END_PATIENCE):
            self._problems.append("its daemon has not ended yet: until then the job cannot be mounted again")


@contextmanager
def _patient(report: Report) -> Iterator[None]:
    """The first signal to end is answered in words: what is pending is being committed. The second one ends."""
    seen: list[int] = []

    def heard(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        report("committing what is pending; once more to leave that to the daemon")

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    child: subprocess.Popen[bytes],
    signals: set[signal.Signals],
    before_reaping: Callable[[], object],
    heard: Callable[[int], object],
) -> int:
    """The child's return code, as subprocess gives it: minus the signal that ended it. `heard` is told of others."""
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_signo == signal.SIGCHLD:
            code = _reap(child, before_reaping)
            if code is not None:
                return code
            continue
        heard(received.si_signo)
        if received.si_code != _SI_KERNEL:  # a terminal has told the child already
            os.kill(child.pid, received.si_signo)


def _reap(child: subprocess.Popen[bytes], before_reaping: Callable[[], object]) -> int | None:
    """Wait for whatever has ended; the child's return code if it is among them. How it ended can be seen until then."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        if ended.si_pid == child.pid:
            before_reaping()
        _, status = os.waitpid(ended.si_pid, 0)
        if ended.si_pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode
