"""The program as a process of its own that goes on while the test does something to its store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.mount.harness import PATIENCE, PROGRAM, wait_until

ROOT = Path(__file__).parents[2]


class Background:
    """One command on the store at `store`; `end` it, or let it end."""

    def __init__(self, store: Path, top: Path, *arguments: str, **environment: str) -> None:
        self._store = store
        self._out, self._err = top / "background.out", top / "background.err"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLEXAI_", "FUSE_CKPT_"))}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*PROGRAM, "--store", str(store), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=kept | {"PYTHONPATH": str(ROOT)} | environment,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The whole lines of standard output, each of which is JSON."""
        return [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    def wait_until_it_looks(self) -> None:
        """Until it has the index open."""
        index = str(self._store / "index" / "data.mdb")

        def looks() -> bool:
            assert self.process.poll() is None, self.err
            found = []
            for name in os.listdir(f"/proc/{self.process.pid}/fd"):
                with contextlib.suppress(OSError):
                    found.append(os.readlink(f"/proc/{self.process.pid}/fd/{name}"))
            return index in found

        wait_until("it looks", looks)

    def wait_for_events(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = wait_until(
            f"{count} events", lambda: self.events if len(self.events) >= count else None
        )
        return found

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def signal(self, number: int) -> int:
        """Send it, and return what the program ends with."""
        self.process.send_signal(number)
        return self.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
