"""The part of a mount's daemon that has bytes fetched which somebody opens and which are not here, by a process of its
own: opening a file waits for it, everything else goes on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import trio

from fuse_ckpt.errors import StorageFailed
from fuse_ckpt.session import children
from fuse_ckpt.store import Store

_log = logging.getLogger(__name__)

LINE_MAX = 1 << 16  # bytes


TICK = 1.0  # seconds between two looks at the index's generation
AT_ONCE = 256  # checkpoints that are asked about
AGAIN = 60.0  # seconds until one is asked about again that could not be told of


class Fetches:
    """Has files fetched. `run` is the task, `describe` another one; `fetch` is called from the same event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: dict[str, _Asked] = {}  # by digest, or id
        self._said = ""
        self._wanted, self._queue = trio.open_memory_channel[dict[str, str]](1 << 16)

    async def fetch(self, checkpoint: str, digest: str) -> None:
        """Have the bytes of a digest here; "": only have it known what the checkpoint is made of.

        Errors: StorageFailed (or whatever kept it, as that).
        """
        asked = self._asked.get(digest or checkpoint)
        if asked is None:
            asked = self._asked[digest or checkpoint] = _Asked()
            self._wanted.send_nowait({"checkpoint": checkpoint, "digest": digest})
        await asked.answered.wait()
        if asked.error is not None:
            raise StorageFailed(asked.error)

    async def describe(self) -> None:
        """Have it known what all checkpoints are made of that lie elsewhere, the newest first, until cancelled: a view
        shows no others."""
        generation = -1
        failed: dict[str, float] = {}  # id → when
        while True:
            now = self._store.generation()
            if now == generation and not failed:
                await trio.sleep(TICK)
                continue
            generation = now
            unknown = await trio.to_thread.run_sync(self._unknown, failed)
            async with trio.open_nursery() as nursery:
                for checkpoint in unknown:
                    nursery.start_soon(self._describe, checkpoint, failed)
            if not unknown:
                await trio.sleep(TICK)

    def _unknown(self, failed: dict[str, float]) -> list[str]:
        before = time.monotonic() - AGAIN
        found = [one.id for one in self._store.checkpoints() if one.remote is not None and not one.described]
        for gone in failed.keys() - set(found):
            del failed[gone]
        return [one for one in reversed(found) if failed.get(one, before) <= before][:AT_ONCE]

    async def _describe(self, checkpoint: str, failed: dict[str, float]) -> None:
        try:
            await self.fetch(checkpoint, "")
            failed.pop(checkpoint, None)
        except StorageFailed:
            failed[checkpoint] = time.monotonic()

    async def run(self) -> None:
        """Pass on what is asked for until cancelled; the process is started when it is needed, and again if it dies."""
        while True:
            first = await self._queue.receive()
            await self._live(first)

    async def _live(self, first: dict[str, str]) -> None:
        command = [sys.executable, "-m", "fuse_ckpt.session", "fetch"]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, process.stdin, first)
                await self._hear(process.stdout)
                nursery.cancel_scope.cancel()
        finally:
            await children.end(process)
            self._fail(f"the process that fetches files ended with {process.returncode}")

    async def _pass_on(self, stdin: trio.abc.SendStream, first: dict[str, str]) -> None:
        with suppress(trio.BrokenResourceError):
            await stdin.send_all(_line({"store": str(self._store.layout.root)}) + _line(first))
            async for wanted in self._queue:
                await stdin.send_all(_line(wanted))

    async def _hear(self, stdout: trio.abc.ReceiveStream) -> None:
        """Until it says no more: it has died."""
        rest = b""
        async for data in stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._answer(json.loads(line))

    def _answer(self, answer: dict[str, Any]) -> None:
        asked = self._asked.pop(answer["digest"] or answer["checkpoint"], None)
        said, self._said = self._said, answer.get("error") or ""
        if self._said not in ("", said):  # of a store that is down each file says the same
            _log.warning("a file cannot be fetched: %s", self._said)
        if asked is not None:
            asked.error = answer.get("error")
            asked.answered.set()

    def _fail(self, reason: str) -> None:
        if self._asked:
            _log.warning("%d files cannot be fetched: %s", len(self._asked), reason)
        for asked in self._asked.values():
            asked.error = reason
            asked.answered.set()
        self._asked.clear()


class _Asked:
    """Bytes that somebody waits for."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.error: str | None = None


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
