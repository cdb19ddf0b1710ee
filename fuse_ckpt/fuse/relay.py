"""The relay: the task that stands between the kernel and libfuse, so that the kernel can move the data by itself.

It reads the kernel's requests. Those that decide about backing files (OPEN, CREATE, RELEASE, FLUSH), those that come
most often (LOOKUP, GETATTR, GETXATTR, FORGET), those that carry data where the kernel does not move it (READ, WRITE),
and those that pyfuse3 has no method for (FALLOCATE, LSEEK, COPY_FILE_RANGE) it answers itself, in the same step; all
others go to libfuse through a socket, and their replies come back the same way, unchanged except for INIT's.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Callable

import trio

from fuse_ckpt.fuse import passthrough
from fuse_ckpt.fuse import protocol as p
from fuse_ckpt.fuse.answers import Answers, Later, Request
from fuse_ckpt.fuse.errno import is_expected, number_of
from fuse_ckpt.vfs import Filesystem

_log = logging.getLogger(__name__)

# Seconds that the next request is looked for before the event loop is asked: a program's next call comes within
# microseconds, and waking from epoll, with cold caches, takes longer than answering. The longer time, that of a write
# of some MiB, only where looking has found something lately.
_SPIN_MIN, _SPIN_MAX = 50e-6, 500e-6
_TURN = 32  # requests in a row before the other tasks get a turn
_BUFFER = 4 << 20  # bytes of each direction of the socket; a message of 1 MiB must fit with others
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


class Relay:
    """The relay of one mount, whose kernel side is the non-blocking descriptor `device`."""

    def __init__(self, device: int, filesystem: Filesystem, depth: int) -> None:
        self._device = device
        self._depth = depth
        self._answers = Answers(filesystem, self._write)
        self._near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._near, self.far):
            for forced, asked in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
                try:
                    end.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)
                except PermissionError:  # then as much as anybody may have: what is long is answered by ourselves
                    end.setsockopt(socket.SOL_SOCKET, asked, _BUFFER)
        self._near.setblocking(False)
        self._init: int | None = None  # the INIT request whose reply is still to come
        self._offered = 0
        self._refused = False
        self._notifying = trio.CapacityLimiter(1)
        if depth:
            filesystem.handles.lend, filesystem.handles.give_back = self._lend, self._give_back

    async def run(self, ended: Callable[[], None]) -> None:
        """Relay until the kernel has let go of the filesystem; then call `ended`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._relay_replies, nursery)
            await self._relay_requests(nursery)
            ended()
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Give the descriptors back; libfuse closes its own end."""
        self._near.close()
        self.far.detach()
        os.close(self._device)

    # -- from the kernel ----------------------------------------------------------------------------------------------

    async def _relay_requests(self, nursery: trio.Nursery) -> None:
        buffer = bytearray(p.LARGEST_REQUEST)
        view = memoryview(buffer)
        served = 0
        until, spin = 0.0, _SPIN_MIN
        while True:
            try:
                size = os.readv(self._device, [buffer])
            except BlockingIOError:
                if time.perf_counter() > until:
                    spin = max(spin / 4, _SPIN_MIN)
                    await trio.lowlevel.wait_readable(self._device)
                    until = 0.0
                continue
            except OSError as exc:
                if exc.errno == errno.ENODEV:  # unmounted
                    return
                if exc.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted
                    continue
                raise
            spin = min(spin * 2, _SPIN_MAX) if until else spin
            answered = await self._relay_request(nursery, view[:size])
            until = time.perf_counter() + spin if answered else 0.0  # libfuse answers only when the event loop turns
            served += 1
            if served % _TURN == 0:
                await trio.lowlevel.cancel_shielded_checkpoint()

    async def _relay_request(self, nursery: trio.Nursery, message: memoryview) -> bool:
        """Answer a request, or pass it on; whether nothing of it is left to be done."""
        _, opcode, unique, nodeid, uid, gid, pid, _, _ = p.IN_HEADER.unpack_from(message)
        if opcode == p.INTERRUPT:  # what it interrupts is answered soon, or is libfuse's and finishes anyway
            return False
        if opcode == p.INIT:
            self._init = unique
            self._offered = p.INIT_IN.unpack_from(message, p.IN_HEADER.size)[3]
        handler = self._answers.table.get(opcode)
        if handler is None:
            await self._send(message)
            return False
        request = Request(unique, nodeid, uid, gid, pid, message[p.IN_HEADER.size :])
        try:
            reply = handler(request)
        except Exception as exc:
            reply = self._refusal(request.unique, handler.__name__, exc)
        if isinstance(reply, bytes | memoryview):
            self._write(reply)
        elif reply is not None:
            nursery.start_soon(self._answer_later, request.unique, reply)
            return False
        return True

    async def _answer_later(self, unique: int, later: Later) -> None:
        try:
            reply = await later()
        except Exception as exc:
            reply = self._refusal(unique, later.__qualname__, exc)
        self._write(reply)

    def _refusal(self, unique: int, name: str, exc: Exception) -> bytes:
        """As the guard of the handlers: whatever goes wrong is one error number, and the mount lives on."""
        if not is_expected(exc):
            _log.error("%s failed, the program sees an error: %r", name, exc, exc_info=exc)
        return p.refusal(unique, number_of(exc))

    async def _send(self, message: memoryview) -> None:
        while True:
            try:
                self._near.send(message)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._near)

    # -- to the kernel ------------------------------------------------------------------------------------------------

    async def _relay_replies(self, nursery: trio.Nursery) -> None:
        buffer = bytearray(p.LARGEST_REQUEST)
        view = memoryview(buffer)
        while True:
            try:
                size = self._near.recv_into(buffer)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._near)
                continue
            if size == 0:
                return
            _, _, unique = p.OUT_HEADER.unpack_from(buffer)
            if unique == 0:
                nursery.start_soon(self._notify, bytes(view[:size]))
            elif unique == self._init:
                self._init = None
                reply = bytearray(view[:size])
                p.edit_init(reply, self._depth, self._offered)
                self._write(bytes(reply))
            else:
                self._write(view[:size])

    async def _notify(self, message: bytes) -> None:
        """A notification waits for a directory's lock, whose holder may wait for us, for a thread that is to fsync that
        directory, say. So it has a thread of its own.
        """
        await trio.to_thread.run_sync(self._write, message, limiter=self._notifying, abandon_on_cancel=True)

    def _write(self, reply: bytes | memoryview) -> None:
        try:
            os.write(self._device, reply)
        except OSError as exc:
            # interrupted meanwhile; unmounted; or a notification of a name that the kernel does not know
            if exc.errno not in (errno.ENOENT, errno.ENODEV):
                _log.error("the kernel refuses a reply: %s", exc)

    # -- backing files ------------------------------------------------------------------------------------------------

    def _lend(self, fd: int) -> int:
        """The backing id of a file; 0 where the kernel refuses: then its data passes through the daemon."""
        try:
            return passthrough.lend(self._device, fd)
        except OSError as exc:
            if not self._refused:
                self._refused = True
                _log.error("the kernel refuses a backing file, such files are served by the daemon: %s", exc)
            return 0

    def _give_back(self, backing_id: int) -> None:
        try:
            passthrough.give_back(self._device, backing_id)
        except OSError as exc:
            _log.error("the kernel does not take backing id %d back: %s", backing_id, exc)
