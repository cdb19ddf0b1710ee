"""Processes of the daemon's own: they end by themselves once their standard input does."""

from __future__ import annotations

import trio

GRACE = 5.0  # seconds for that


async def end(process: trio.Process) -> None:
    """Have it end, and wait for that; one that does not within GRACE is killed."""
    assert process.stdin is not None
    with trio.CancelScope(shield=True):
        await process.stdin.aclose()
        with trio.move_on_after(GRACE):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
