"""A person's command, run once for each checkpoint that becomes available, one after the other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fuse_ckpt.errors import FuseCkptError, UsageError

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Lease, Store

Report = Callable[[str], None]

VARIABLES = {"id": "FUSE_CKPT_ID", "name": "FUSE_CKPT_NAME", "path": "FUSE_CKPT_PATH"}
_PLACE = re.compile(r"(?<!\$)\{(id|name|path)\}")
# sh -c "… {name} …" and eval "… {name} …"
_NESTED = re.compile(r'(?:\b\w*sh\s+(?:-\S+\s+)*?-\w*c|\beval)\s+"(?:[^"\\]|\\.)*\{(?:id|name|path)\}')
_PATIENCE = 5.0  # seconds for a command that was told to end


def shell_script(command: str) -> str:
    """`command` with {id}, {name} and {path} as references to VARIABLES, quoted as the place needs it.

    A NAME is whatever a program called its file: as a value of a variable this shell never parses it, and another one
    that the command starts parses it only where it is made part of a script. Raises UsageError where that is seen.
    """
    if _NESTED.search(command):
        raise UsageError(
            "--exec would let another shell parse a name: in a script for it write $FUSE_CKPT_NAME, $FUSE_CKPT_ID or"
            " $FUSE_CKPT_PATH instead of {…}, and put the script in single quotes."
        )
    written: list[str] = []
    quote = ""
    at = 0
    while at < len(command):
        char = command[at]
        if place := _PLACE.match(command, at):
            reference = f"${{{VARIABLES[place[1]]}}}"
            written.append(reference if quote == '"' else f'"{reference}"')
            at = place.end()
            continue
        step = 2 if char == "\\" and quote != "'" else 1
        if char in ("'", '"'):
            quote = "" if quote == char else quote or char
        written.append(command[at : at + step])
        at += step
    return "".join(written)


class View:
    """A read-only mount of the store for the command, where it asks for {path}; taken away by `close`.

    It is not the job's own: that one goes when the run ends, often before the last checkpoint is evaluated, and a
    command that still reads it would keep the run from ending in order.
    """

    def __init__(self, command: str | None, store: Store, report: Report) -> None:
        self._store = store
        self._report = report
        wanted = command is not None and any(text in command for text in ("{path}", VARIABLES["path"]))
        self._top = self._mount() if wanted else None

    def _mount(self) -> Path | None:
        from fuse_ckpt import session

        top = Path(tempfile.mkdtemp(prefix="fuse-ckpt-watch-"))
        try:
            session.view(self._store, top)
        except BaseException as error:
            top.rmdir()
            if not isinstance(error, FuseCkptError):
                raise
            self._report(f"{{path}} is there only while the job is mounted: {error}")
            return None
        return top

    def path(self, checkpoint: Checkpoint) -> str:
        """The directory of a checkpoint; "" where there is none to be seen."""
        mounted = self._store.job_note(checkpoint.job) if self._top is None else ""
        by_id = self._top / checkpoint.job if self._top is not None else Path(mounted) / ".checkpoints"
        path = by_id / "by-id" / checkpoint.id
        return str(path) if (self._top or mounted) and path.is_dir() else ""

    def close(self) -> None:
        top, self._top = self._top, None
        if top is None:
            return
        from fuse_ckpt import session

        try:
            session.umount(top)
            top.rmdir()
        except (FuseCkptError, OSError) as error:  # its daemon goes when nobody uses it any more
            self._report(f"{top} is left for now: {error}")


class Hook:
    """The command and the checkpoints that wait for it. Nothing here blocks but `close`."""

    def __init__(
        self, command: str | None, store: Store, environment: Mapping[str, str], view: View, report: Report
    ) -> None:
        self._script = None if command is None else shell_script(command)
        self._store = store
        self._view = view
        self._environment = {**environment, "FUSE_CKPT_STORE": str(store.layout.root)}
        self._report = report
        self._waiting: deque[Checkpoint] = deque()
        self._running: tuple[Checkpoint, subprocess.Popen[bytes], Lease] | None = None

    @property
    def idle(self) -> bool:
        return self._running is None and not self._waiting

    def add(self, checkpoint: Checkpoint) -> None:
        if self._script is not None:
            self._waiting.append(checkpoint)

    def turn(self) -> None:
        """Note the end of the command that ran, if it has ended, and start the next."""
        self._note_end()
        while self._waiting and self._running is None:
            self._start(self._waiting.popleft())

    def _note_end(self) -> None:
        if self._running is None:
            return
        checkpoint, process, lease = self._running
        code = process.poll()
        if code is None:
            return
        lease.close()
        self._running = None
        if code != 0:
            how = f"ended with {code}" if code > 0 else f"was ended by signal {-code}"
            self._report(f"the command for {checkpoint.id} ({checkpoint.name}) {how}")

    def _start(self, checkpoint: Checkpoint) -> None:
        try:
            lease = self._store.lease(checkpoint.id)  # what is being evaluated must not be deleted meanwhile
        except FuseCkptError as error:
            self._report(f"no command is run for {checkpoint.id}: {error}")
            return
        try:
            self._running = (checkpoint, self._spawn(checkpoint), lease)
        except OSError as error:
            lease.close()
            self._report(f"no command is run for {checkpoint.id}: {error.strerror}")

    def _spawn(self, checkpoint: Checkpoint) -> subprocess.Popen[bytes]:
        path = self._view.path(checkpoint)
        values = zip(VARIABLES.values(), (checkpoint.id, checkpoint.name, path), strict=True)
        return subprocess.Popen(
            ["/bin/sh", "-c", self._script or ""],
            env={**self._environment, **dict(values)},
            stdin=subprocess.DEVNULL,
            stdout=2,  # standard output is the events' alone
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, ()),
        )

    def close(self) -> None:
        """End the command that runs, and forget those that wait."""
        self._waiting.clear()
        running, self._running = self._running, None
        if running is None:
            return
        _, process, lease = running
        with lease, contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
