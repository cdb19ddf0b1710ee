"""`fuse-ckpt`, writing down what its filesystem is told: recorder.py TRACE ARGUMENTS…

The trace is JSON, an event a line: when (`t`, seconds from the first event), what (`op`), where, by which process
(numbered as they come). Names, opens, closes, renames, times; no data, except what a pointer file says.

    create PATH FILE PID      open PATH FILE PID TRUNCATED     close FILE CHANGED [DEATH] [TEXT]
    mkdir PATH PID            rmdir, unlink PATH PID           rename PATH TO PID
    symlink PATH TARGET PID   link PATH TO PID                 truncate PATH SIZE PID        exit PID [DEATH]
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from fuse_ckpt.cli import main
from fuse_ckpt.staging import Area
from fuse_ckpt.staging.processes import process_of
from fuse_ckpt.staging.units import is_companion
from fuse_ckpt.vfs import Filesystem
from fuse_ckpt.vfs.inodes import WorkInode

TEXT_MAX = 4096  # bytes of a pointer file


class Recorder:
    """Wraps the methods of Filesystem and Area; `trace` gets the lines."""

    def __init__(self, trace: TextIO) -> None:
        self._trace = trace
        self._start: float | None = None
        self._files: dict[int, int] = {}  # open handle → its number in the trace
        self._opened = 0
        self._pids: dict[int, int] = {}
        self._closing: dict[str, Any] = {}
        for name in ("create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "open_now", "release"):
            self._wrap(Filesystem, name, getattr(self, name))
        for name in ("open_sealed", "setattr"):
            self._wrap_async(Filesystem, name, getattr(self, name))
        self._wrap(Area, "released", self.released)
        self._wrap(Area, "exited", self.exited)

    @staticmethod
    def _wrap(owner: type, name: str, note: Callable[..., None]) -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        def noted(self: Any, *arguments: Any, **more: Any) -> Any:
            note(self, None, *arguments, **more)
            answer = method(self, *arguments, **more)
            note(self, (answer,), *arguments, **more)
            return answer

        setattr(owner, name, noted)

    @staticmethod
    def _wrap_async(owner: type, name: str, note: Callable[..., None]) -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        async def noted(self: Any, *arguments: Any, **more: Any) -> Any:
            answer = await method(self, *arguments, **more)
            note(self, (answer,), *arguments, **more)
            return answer

        setattr(owner, name, noted)

    def _say(self, op: str, **more: Any) -> None:
        now = time.monotonic()
        self._start = now if self._start is None else self._start
        kept = {key: value for key, value in more.items() if value is not None}
        self._trace.write(json.dumps({"t": round(now - self._start, 4), "op": op, **kept}) + "\n")
        self._trace.flush()

    def _pid(self, process: int) -> int:
        return self._pids.setdefault(process, len(self._pids) + 1)

    # -- the note of each method: called before it (`done` is None) and after it --------------------------------------

    def create(self, fs: Any, done: Any, parent: int, name: bytes, mode: int, caller: Any) -> None:
        if done:
            self._opening("create", fs, done[0][0], _below(fs, parent, name), caller)

    def open_now(self, fs: Any, done: Any, nid: int, flags: int, caller: Any) -> None:
        if done and done[0] is not None and flags & os.O_ACCMODE != os.O_RDONLY:
            path = os.fsdecode(fs._table[nid].path())
            self._opening("open", fs, done[0], path, caller, truncated=bool(flags & os.O_TRUNC))

    open_sealed = open_now

    def _opening(self, op: str, fs: Any, fh: int, path: str, caller: Any, **more: Any) -> None:
        self._opened += 1
        self._files[fh] = self._opened
        self._say(op, path=path, file=self._opened, pid=self._pid(process_of(caller.task)), **more)

    def release(self, fs: Any, done: Any, fh: int) -> None:
        if not done:
            inode = getattr(fs.handles[fh], "inode", None)
            self._closing = {}
            if fh in self._files and isinstance(inode, WorkInode) and inode.names:
                self._closing = {"text": _pointer(fs, os.fsdecode(inode.path()))}
        elif fh in self._files:
            said = {"changed": False} | self._closing
            self._say("close", file=self._files.pop(fh), **said)

    def released(
        self, area: Any, done: Any, key: Any, *, changed: bool, death: str | None = None, names: Iterable[str] = ()
    ) -> None:
        self._closing |= {"changed": changed, "death": death}

    def mkdir(self, fs: Any, done: Any, parent: int, name: bytes, mode: int, caller: Any) -> None:
        self._named("mkdir", fs, done, parent, name, caller)

    def unlink(self, fs: Any, done: Any, parent: int, name: bytes, caller: Any) -> None:
        self._named("unlink", fs, done, parent, name, caller)

    def rmdir(self, fs: Any, done: Any, parent: int, name: bytes, caller: Any) -> None:
        self._named("rmdir", fs, done, parent, name, caller)

    def symlink(self, fs: Any, done: Any, parent: int, name: bytes, target: bytes, caller: Any) -> None:
        self._named("symlink", fs, done, parent, name, caller, target=os.fsdecode(target))

    def link(self, fs: Any, done: Any, nid: int, parent: int, name: bytes, caller: Any) -> None:
        if not done:
            self._say(
                "link", path=os.fsdecode(fs._table[nid].path()), to=_below(fs, parent, name), pid=self._by(caller)
            )

    def rename(
        self, fs: Any, done: Any, parent: int, name: bytes, to: int, to_name: bytes, flags: int, caller: Any
    ) -> None:
        self._named("rename", fs, done, parent, name, caller, to=_below(fs, to, to_name))

    def _named(self, op: str, fs: Any, done: Any, parent: int, name: bytes, caller: Any, **more: Any) -> None:
        if done:
            self._say(op, path=_below(fs, parent, name), pid=self._by(caller), **more)

    def _by(self, caller: Any) -> int:
        return self._pid(process_of(caller.task))

    def setattr(self, fs: Any, done: Any, nid: int, changes: Any, fh: int | None, caller: Any) -> None:
        if changes.size is not None and fh is None:
            path = os.fsdecode(fs._table[nid].path())
            self._say("truncate", path=path, size=changes.size, pid=self._by(caller))

    def exited(self, area: Any, done: Any, process: int, death: str | None = None) -> None:
        if done and process in self._pids:
            self._say("exit", pid=self._pids[process], death=death)


def _below(fs: Any, parent: int, name: bytes) -> str:
    return str(fs._output.path(fs._table[parent], name))


def _pointer(fs: Any, path: str) -> str | None:
    """What a pointer file says; None for any other."""
    if not is_companion(path) or path.endswith(".py"):
        return None
    fd = os.open(path, os.O_RDONLY, dir_fd=fs._output.root_fd)
    with open(fd, "rb") as file:
        return file.read(TEXT_MAX).decode(errors="replace")


if __name__ == "__main__":
    trace = Path(sys.argv[1]).open("w")  # noqa: SIM115 - as long as the process
    Recorder(trace)
    sys.exit(main(sys.argv[2:]))
