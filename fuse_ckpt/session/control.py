"""Talking to a job's daemon: one JSON line in, one JSON line out, over a socket in the job's directory.

The socket is reached through the directory's descriptor, since its address may hold 107 bytes only and a store may lie
deep. Whoever can open the store may talk to its daemons: the store's root is 0700.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

_log = logging.getLogger(__name__)

Answer = dict[str, Any]
LONGEST = 1 << 22  # bytes of an answer
LONGEST_QUESTION = 1 << 16  # bytes; a path has 4096, each of which takes up to six in JSON

_ANSWER_PATIENCE = 3.0  # seconds, for questions that a healthy daemon answers at once


def ask(path: Path, question: str, *, patience: float | None = _ANSWER_PATIENCE) -> Answer | None:
    """The daemon's answer; None where none listens, or it says nothing within `patience` seconds (None: for ever)."""
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(patience)
            peer.connect(f"/proc/self/fd/{directory}/{path.name}")
            peer.sendall(question.encode() + b"\n")
            with peer.makefile("rb") as lines:
                line = lines.readline(LONGEST)
    except OSError:
        return None
    finally:
        os.close(directory)
    return json.loads(line) if line.endswith(b"\n") else None


async def listen(
    path: Path,
    answer: Callable[[str], Awaitable[Answer]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve questions until cancelled; has started once they can be asked. An earlier daemon's socket is replaced."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    address = f"/proc/self/fd/{directory}/{path.name}"
    try:
        path.unlink(missing_ok=True)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            await listener.bind(address)
            path.chmod(0o600)  # the daemon has no umask
            listener.listen()
            task_status.started()

            async def converse(peer: trio.SocketStream) -> None:
                await _converse(peer, answer)

            await trio.serve_listeners(converse, [trio.SocketListener(listener)])
    finally:
        path.unlink(missing_ok=True)
        os.close(directory)


async def _converse(peer: trio.SocketStream, answer: Callable[[str], Awaitable[Answer]]) -> None:
    async with peer:
        question = b""
        while not question.endswith(b"\n"):
            part = await peer.receive_some(4096)
            if not part or len(question) > LONGEST_QUESTION:
                return
            question += part
        reply = json.dumps(await _guarded(answer, question.decode(errors="replace").strip()))
        try:
            await peer.send_all(reply.encode() + b"\n")
        except trio.BrokenResourceError:  # it did not wait
            return


async def _guarded(answer: Callable[[str], Awaitable[Answer]], question: str) -> Answer:
    """A question that goes wrong must not end the mount."""
    try:
        return await answer(question)
    except Exception as exc:
        _log.error("no answer to %r: %r", question, exc, exc_info=exc)
        return {"error": str(exc) or repr(exc)}
