"""Plays a trace against the filesystem, without a kernel, under a clock that jumps from event to event.

Names, opens and closes are the trace's; what lies in a file is made up, whole in its format. The processes are numbers
that no process has: what is asked of them is answered from the trace.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from msgspec import Struct
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from fuse_ckpt.model import State
from fuse_ckpt.staging import Area
from fuse_ckpt.store import Store
from fuse_ckpt.vfs import Caller, Changes, Filesystem
from tests.replay.traces import Event, Trace
from tests.staging.trainer import torch_zip

JOB = "job"
NOBODY = 1 << 23  # above every process id that Linux gives
PATIENCE = 600.0  # seconds, of a clock that jumps, until all that waits for something must have happened


class Result(Struct, frozen=True, order=True):
    """A checkpoint: `name` is "NAME@n", with the number of its revision where it was amended, and its state if that is
    not available."""

    name: str
    files: tuple[str, ...]


class Exits:
    """The ends of the processes, which the committer waits for."""

    def __init__(self) -> None:
        self._events: dict[int, trio.Event] = {}
        self._deaths: dict[int, str | None] = {}

    def _of(self, process: int) -> trio.Event:
        return self._events.setdefault(process, trio.Event())

    async def wait(self, process: int, _: int | None = None) -> str | None:
        await self._of(process).wait()
        return self._deaths[process]

    def end(self, process: int, death: str | None) -> None:
        self._deaths[process] = death
        self._of(process).set()


class Player:
    """One trace on one filesystem."""

    def __init__(self, filesystem: Filesystem, area: Area, exits: Exits) -> None:
        self._fs, self._area, self._exits = filesystem, area, exits
        self._handles: dict[int, tuple[int, str]] = {}  # file of the trace → its handle, the name it was opened by
        self._moved: dict[str, str] = {}  # a name that is open → the one that it has now
        self._written = 0

    async def play(self, trace: Trace) -> None:
        start = trio.current_time()
        for event in trace:
            await trio.sleep_until(start + event.t)
            act: Callable[[Event, Caller], Awaitable[None]] = getattr(self, f"_{event.op}")
            await act(event, Caller(os.getuid(), os.getgid(), NOBODY + event.pid))

    async def _create(self, event: Event, caller: Caller) -> None:
        parent, name = self._parent(event.path)
        fh, _ = self._fs.create(parent, name, 0o644, caller)
        self._handles[event.file] = fh, event.path

    async def _open(self, event: Event, caller: Caller) -> None:
        flags = os.O_RDWR | (os.O_TRUNC if event.truncated else 0)
        for last in (False, True):
            try:
                fh = await self._fs.open(self._walk(event.path), flags, caller)
                break
            except OSError as exc:
                if last or exc.errno != errno.ESTALE:
                    raise
        self._handles[event.file] = fh, event.path

    async def _close(self, event: Event, _: Caller) -> None:
        fh, path = self._handles.pop(event.file)
        if event.changed:
            self._written += 1
            path = self._moved.get(path, path)
            size = os.fstat(self._fs.handles.descriptor(fh)).st_size
            self._fs.write(fh, size, self._content(path, event.text))
        if event.death is not None:
            handle: Any = self._fs.handles[fh]
            handle.death = event.death
        self._fs.release(fh)

    async def _mkdir(self, event: Event, caller: Caller) -> None:
        parent, name = self._parent(event.path)
        self._fs.mkdir(parent, name, 0o755, caller)

    async def _symlink(self, event: Event, caller: Caller) -> None:
        parent, name = self._parent(event.path)
        self._fs.symlink(parent, name, os.fsencode(event.target), caller)

    async def _link(self, event: Event, caller: Caller) -> None:
        parent, name = self._parent(event.to)
        self._fs.link(self._walk(event.path), parent, name, caller)

    async def _unlink(self, event: Event, caller: Caller) -> None:
        parent, name = self._parent(event.path)
        self._fs.unlink(parent, name, caller)

    async def _rmdir(self, event: Event, caller: Caller) -> None:
        parent, name = self._parent(event.path)
        self._fs.rmdir(parent, name, caller)

    async def _rename(self, event: Event, caller: Caller) -> None:
        (parent, name), (to, to_name) = self._parent(event.path), self._parent(event.to)
        self._fs.rename(parent, name, to, to_name, 0, caller)
        self._moved[event.path] = event.to

    async def _truncate(self, event: Event, caller: Caller) -> None:
        await self._fs.setattr(self._walk(event.path), Changes(size=event.size), None, caller)

    async def _exit(self, event: Event, _: Caller) -> None:
        self._exits.end(NOBODY + event.pid, event.death)

    def _walk(self, path: str) -> int:
        nid = 1
        for name in filter(None, path.split("/")):
            nid = self._fs.lookup(nid, os.fsencode(name)).nid
        return nid

    def _parent(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return self._walk(above), os.fsencode(name)

    def _content(self, path: str, text: str | None) -> bytes:
        """Something whole in the format that the name says, each time another."""
        number = self._written
        name = path.rpartition("/")[2].removesuffix(".tmp")
        if text is not None:
            return text.encode()
        if name == ".metadata":
            return _metadata(self._ranks_files(path))
        if name.endswith(".json"):
            return json.dumps({"number": number}).encode()
        if name.endswith(".safetensors"):
            header = {"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "__metadata__": {"n": str(number)}}
            text_of_header = json.dumps(header).encode()
            return struct.pack("<Q", len(text_of_header)) + text_of_header + b"x"
        if name.endswith((".pt", ".pth", ".ckpt", ".bin", ".pkl", ".distcp")):
            return torch_zip(b"%d" % number)
        return b"%d\n" % number

    def _ranks_files(self, path: str) -> list[str]:
        fd = os.open(path.rpartition("/")[0] or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._area.tree.root_fd)
        try:
            return sorted(name for name in os.listdir(fd) if name.endswith(".distcp"))
        finally:
            os.close(fd)


def _metadata(ranks_files: list[str]) -> bytes:
    """A `.metadata` that says that each rank's file holds an object of one byte."""
    places = {MetadataIndex(name): _StorageInfo(name, 0, 1) for name in ranks_files}
    return pickle.dumps(Metadata(state_dict_metadata={}, storage_data=places))


def results(store: Store) -> list[Result]:
    """All that the store lists of the job, in the order of their ids."""
    found = []
    for one in store.checkpoints(JOB):
        amended = f" r{one.revision}" if one.revision > 1 else ""
        state = "" if one.state is State.AVAILABLE else f" {one.state}"
        files = tuple(sorted(entry.path for entry in store.manifest(one.id).entries if entry.kind == "file"))
        found.append(Result(f"{one.name}@{one.ordinal}{amended}{state}", files))
    return found
