"""The task of a mount's daemon that has an uploader run, a process of its own, as long as there is anything to copy."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from contextlib import suppress

import msgspec
import trio

from fuse_ckpt.session import children
from fuse_ckpt.store import Store

_log = logging.getLogger(__name__)

TICK = 1.0  # seconds between two looks whether there is anything to copy
AGAIN = (1.0, 60.0)  # seconds until the next one is started, first and at most
LONG = 60.0  # seconds; one that lived so long did not fail at once


class Uploads:
    """Has an uploader run for the mount of `job`. `pid` is that of the process, if there is one."""

    def __init__(self, store: Store, job: str, rate: int | None) -> None:
        self.pid: int | None = None
        self.started = 0
        self._store = store
        self._job = job
        self._rate = rate

    async def run(self) -> None:
        """Start one when it is needed, and again when it dies, until cancelled."""
        pause = AGAIN[0]
        while True:
            await self._await_need()
            began = time.monotonic()
            code = await self._live()
            pause = AGAIN[0] if time.monotonic() - began > LONG else pause
            _log.warning("the uploader ended with %s: another one is started in %g s", code, pause)
            await trio.sleep(pause)
            pause = min(AGAIN[1], 2 * pause)

    async def _await_need(self) -> None:
        generation = -1
        while True:
            now = self._store.generation()
            if now != generation and await trio.to_thread.run_sync(self._needed):
                return
            generation = now
            await trio.sleep(TICK)

    def _needed(self) -> bool:
        return self._store.job(self._job).replication is not None or bool(self._store.outbox())

    async def _live(self) -> int:
        """One process, from its start to its end; it is ended with us."""
        command = [sys.executable, "-m", "fuse_ckpt.session", "upload"]
        options = {"store": str(self._store.layout.root), "rate": self._rate}
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, cwd="/")
        self.pid = process.pid
        self.started += 1
        assert process.stdin is not None
        try:
            with suppress(trio.BrokenResourceError):  # it has died already
                await process.stdin.send_all(msgspec.json.encode(options) + b"\n")
            return await process.wait()
        finally:
            self.pid = None
            await children.end(process)
