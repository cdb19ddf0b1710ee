"""The daemon of one mount: builds the parts of the other rooms, owns the nursery, and ends in order.

The order at the end: no draft is left that could be committed, then the mount goes, then whatever its last users closed
is committed too, then the job's lock. After a crash nothing is unmounted: training would go on into the bare directory.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import trio

from fuse_ckpt.errors import FuseCkptError, MountFailed, StillBound
from fuse_ckpt.faults import fault
from fuse_ckpt.fuse import mount
from fuse_ckpt.fuse.passthrough import Verdict, probe
from fuse_ckpt.fuse.wire import Wire, can_relay, forget_name
from fuse_ckpt.session import committing, control
from fuse_ckpt.session.fetches import Fetches
from fuse_ckpt.session.keeping import Keeper
from fuse_ckpt.session.options import Mounted, MountOptions
from fuse_ckpt.session.replicating import set_replication
from fuse_ckpt.session.uploads import Uploads
from fuse_ckpt.session.workplace import take_up
from fuse_ckpt.staging import Area, Committer, Settings, death_of, wait_exit
from fuse_ckpt.store import Store
from fuse_ckpt.vfs import Filesystem, browse_filesystem, job_filesystem

_log = logging.getLogger(__name__)

GONE_PATIENCE = 2.0  # seconds between unmounting and the kernel's word that nothing is left of it
BUSY_PATIENCE = 1.0  # seconds between attempts to unmount after the supervisor's death

Ready = Callable[[Mounted], None]


def serve(options: MountOptions, ready: Ready) -> None:
    """Mount and serve until unmounted. `ready` is called once the mount can be used.

    Raises FuseCkptError where it cannot be mounted; then nothing is changed.
    """
    os.umask(0)  # the kernel has applied the caller's
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # what a broken lease sends, and the default action is to die
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one descriptor for each directory that the kernel knows
    with ExitStack() as stack:
        mount.check_device()
        store = stack.enter_context(Store.open(options.store, create=options.job is not None))
        service = Service(store, options, stack)
        trio.run(service.run, ready)


class Service:
    """One mount in service, from its parts to its end."""

    def __init__(self, store: Store, options: MountOptions, stack: ExitStack) -> None:
        self._store = store
        self._options = options
        self._stack = stack
        self._area: Area | None = None
        self._committer: Committer | None = None
        self._uploads: Uploads | None = None
        self._fetches = Fetches(store)
        self._gone = trio.Event()
        self._command: int | None = None  # the process that the supervisor runs
        self.mountpoint = options.mountpoint or _own_mountpoint(store, options.job or "")
        who = "browse" if options.job is None else f"a mount of job {options.job}"
        self._uses = stack.enter_context(store.uses(f"{who}, process {os.getpid()}"))
        self._filesystem = self._browse() if options.job is None else self._job(options.job)
        self._keeper = Keeper(store, self._filesystem, self._uses, options.job, self._area, self._commits)

    async def run(self, ready: Ready) -> None:
        self._verdict = choose_data_path(self._options.data_path, self._store.layout.mounts)
        fault("mount:attach")
        attached = mount.attach(
            self.mountpoint,
            self._source(),
            allow_other=self._options.allow_other,
            read_only=self._options.job is None,
            depth=self._verdict.depth,
            relayed=can_relay() or self._verdict.depth > 0,
        )
        fault("mount:serve")
        self._wire = Wire(self._filesystem, attached)
        async with trio.open_nursery() as nursery:
            if self._committer is not None and self._options.job is not None:
                nursery.start_soon(self._committer.run)
                await nursery.start(control.listen, self._store.layout.control(self._options.job), self._answer)
            if self._uploads is not None:
                nursery.start_soon(self._uploads.run)
            nursery.start_soon(self._fetches.run)
            nursery.start_soon(self._filesystem.handles.read_ahead.run)
            if self._options.job is None:
                nursery.start_soon(self._fetches.describe)
            nursery.start_soon(self._keeper.run)
            nursery.start_soon(self._obey_signals, nursery)
            if self._options.supervisor is not None:
                nursery.start_soon(self._outlive, self._options.supervisor)
            nursery.start_soon(self._announce, ready)
            await self._wire.serve()
            self._gone.set()
            if not self._wire.stopped:
                self._filesystem.release_all()
            fault("unmount:drain")
            await self._drain()
            fault("unmount:done")
            nursery.cancel_scope.cancel()
        await self._keeper.finish()
        self._wire.close()

    # -- the parts ----------------------------------------------------------------------------------------------------

    def _job(self, job: str) -> Filesystem:
        store, options, stack = self._store, self._options, self._stack
        lock = stack.enter_context(store.lock_job(job))
        mount.check_mountpoint(self.mountpoint)
        lock.note(str(self.mountpoint))
        store.ensure_job(job, time.time_ns())
        store.set_rules(job, options.retain, options.trash_ttl_ns, options.min_free)
        store.note_units(job, options.units)
        set_replication(store, options)
        self._uploads = Uploads(store, job, options.replicate_rate)
        if options.parent is not None:
            stack.enter_context(store.lease(options.parent, f"a mount of job {job}, process {os.getpid()}"))
        replication = store.job(job).replication
        part = None if replication is None else replication.part
        settings = Settings(
            options.units, options.quiet_period, options.node, options.run, options.parent, part,
            tuple((run.started_ns, run.id) for run in store.runs(job)),
        )  # fmt: skip
        place = take_up(store, job, settings, stack)
        self._area, self._committer = place.area, place.committer
        return job_filesystem(
            store, job, place.root_fd, place.area, self._uses, forget_name, show=options.show_checkpoints,
            also=options.parent, durable=options.durability == "close",
            fetch=self._fetches.fetch,
        )  # fmt: skip

    def _browse(self) -> Filesystem:
        mount.check_mountpoint(self.mountpoint)
        disk_fd = os.open(self._store.layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.callback(os.close, disk_fd)
        return browse_filesystem(self._store, disk_fd, self._uses, forget_name, fetch=self._fetches.fetch)

    def _source(self) -> Path:
        layout = self._store.layout
        return layout.root if self._options.job is None else layout.job(self._options.job)

    async def _announce(self, ready: Ready) -> None:
        """Say that the mount is ready once it answers: a program that starts now finds it."""
        await trio.to_thread.run_sync(os.stat, self.mountpoint)
        ready(Mounted(self.mountpoint, os.getpid(), self._data_path(), self._verdict.reason))

    def _data_path(self) -> str:
        return "passthrough" if self._verdict.depth else "daemon"

    # -- what it is told ----------------------------------------------------------------------------------------------

    async def _answer(self, question: str) -> control.Answer:
        if question == "status":
            return await self._status()
        if question == "commit":
            await self._drain()
            return await self._status()
        if question.startswith(committing.QUESTION):
            return await self._commit(json.loads(question.removeprefix(committing.QUESTION)))
        if question.startswith("command "):
            self._command = int(question.removeprefix("command "))
            return {}
        if question.startswith("died "):
            process = int(question.removeprefix("died "))
            self._note_death(process)
            return {}
        if question in ("unmount", "unmount lazily"):
            return await self._unmount(lazy=question == "unmount lazily")
        return {"error": f"no such question: {question}"}

    async def _commit(self, name: str | None) -> control.Answer:
        assert self._committer is not None
        answer: control.Answer = msgspec.to_builtins(committing.answer_of(await self._committer.drain(name)))
        return answer

    def _note_death(self, process: int) -> None:
        """The supervisor waits with reaping its command, so that how it died can be seen."""
        assert self._area is not None
        self._area.exited(process, death_of(process))

    async def _unmount(self, *, lazy: bool) -> control.Answer:
        """Unmount; what is pending is committed once the last user has gone, for until then it may still be written."""
        fault("unmount:detach")
        try:
            mount.detach(self.mountpoint, lazy=lazy)
        except StillBound as exc:
            return {"busy": str(exc)}
        except FuseCkptError as exc:
            return {"error": str(exc)}
        return {"unmounted": await self._is_gone()}

    async def _is_gone(self) -> bool:
        with trio.move_on_after(GONE_PATIENCE):
            await self._gone.wait()
        if self._wire.is_let_go():  # that time may have gone by while this process got no processor
            await self._gone.wait()
        return self._gone.is_set()

    async def _obey_signals(self, nursery: trio.Nursery) -> None:
        """SIGTERM, SIGINT or SIGHUP: commit, unmount, go. A second one goes at once."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            await anext(received)
            nursery.start_soon(self._end)
            _log.warning("signal %d again: leaving at once", await anext(received))
            self._wire.stop()

    async def _end(self) -> None:
        await self._drain()
        try:
            mount.detach(self.mountpoint, lazy=True)
        except MountFailed as exc:
            _log.warning("%s", exc)
        if not await self._is_gone():
            _log.warning("%s is still in use: its users see ENOTCONN from now on", self.mountpoint)
            self._wire.stop()

    async def _outlive(self, supervisor: int) -> None:
        """Once the supervisor has died and the command that it ran has ended, end as soon as nobody uses the mount."""
        await wait_exit(supervisor)
        if self._command is not None:
            await wait_exit(self._command)
        while not self._gone.is_set():
            try:
                mount.detach(self.mountpoint)
                return
            except FuseCkptError:
                await trio.sleep(BUSY_PATIENCE)

    async def _drain(self) -> None:
        if self._committer is not None:
            await self._committer.drain()

    def _commits(self) -> int:
        if self._committer is None:
            return 0
        done = self._committer.statistics
        return done.committed + done.amended + done.failed

    async def _status(self) -> control.Answer:
        assert self._area is not None
        assert self._committer is not None
        area = self._area
        pending = [(unit, draft.created_ns) for unit, draft in area.drafts.items() if draft.first_closed is not None]
        sizes = await trio.to_thread.run_sync(lambda: [area.size_of(unit) for unit, _ in pending])
        drafts = [
            {"name": unit.name, "since_ns": since_ns, "size": size}
            for (unit, since_ns), size in zip(pending, sizes, strict=True)
        ]
        return {
            "pid": os.getpid(),
            "mountpoint": str(self.mountpoint),
            "data_path": self._data_path(),
            "reason": self._verdict.reason,
            "drafts": drafts,
            "committing": len(self._area.queue),
            "open_files": self._filesystem.open_files,
            "statistics": msgspec.to_builtins(self._committer.statistics),
            "kept": msgspec.to_builtins(self._keeper.done),
            "uploader": self._uploads.pid if self._uploads is not None else None,
        }


def choose_data_path(wanted: str, directory: Path) -> Verdict:
    """Who moves the data of files on the disk of `directory`. Raises MountFailed where what is wanted cannot be."""
    if wanted == "daemon":
        return Verdict(0, "asked for")
    verdict = probe(directory)
    if wanted == "passthrough" and not verdict.depth:
        raise MountFailed(f"Passthrough cannot be had here: {verdict.reason}. --data-path auto goes without it.")
    return verdict


def _own_mountpoint(store: Store, job: str) -> Path:
    """The job's own place in the store, the same for every run: trainers keep absolute paths."""
    mountpoint = store.layout.output_mount(job)
    if mount.mount_at(mountpoint) is None:
        for directory in (mountpoint.parent, mountpoint):  # `parents` would leave the mode to the umask, of which
            directory.mkdir(0o700, exist_ok=True)  # a daemon has none
    return mountpoint
