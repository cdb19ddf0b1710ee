"""Machines in network namespaces of their own, on one bridge; or, where that cannot be, plain processes on loopback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator, Sequence

from scripts.ordeals.mounts import OrdealError, wait_until
from tests.transfer.proxy import HANG_UP, Proxy

_CLONE_NEWNET = 0x40000000
_BRIDGE = "10.211.7.1"
_NODE = "10.211.7.{}"
NAMESPACES, PROCESSES = "network namespaces", "plain processes"


class Link:
    """How a machine reaches the others and the object store. `before`: what its programs are run by; `address`: where
    others find it, on `interface`."""

    def __init__(self, before: Sequence[str], address: str, interface: str) -> None:
        self.before = tuple(before)
        self.address = address
        self.interface = interface

    def endpoint(self, port: int) -> str:
        """Where the object store is that listens on `port` of the bridge."""
        return f"http://{_BRIDGE}:{port}"

    def cut(self) -> None:
        """Nothing goes in or out until `mend`."""
        _ip("link", "set", f"to-{self.interface}", "down")

    def mend(self) -> None:
        _ip("link", "set", f"to-{self.interface}", "up")


class Loopback(Link):
    """A machine without a namespace: a proxy stands before the object store, and is what can be cut."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        super().__init__((), "127.0.0.1", "lo")
        self._stack = stack
        self._proxy: Proxy | None = None
        self._until = 0.0

    def endpoint(self, port: int) -> str:
        if self._proxy is None:
            self._proxy = Proxy(port)
            self._proxy.decide = lambda method, path, count: HANG_UP if time.monotonic() < self._until else None
            self._stack.callback(self._proxy.close)
        return self._proxy.endpoint

    def cut(self) -> None:
        self._until = float("inf")

    def mend(self) -> None:
        self._until = 0.0


@contextlib.contextmanager
def network(count: int, *, alone: bool) -> Iterator[tuple[str, str, list[Link]]]:
    """What it is, the address on which the object store is to listen, and the way of each of `count` machines to it.

    Namespaces where that is allowed, unless they are not to be `alone`. With them this process itself goes into one,
    for good: the bridge, and what it starts, are there.
    """
    with contextlib.ExitStack() as stack:
        if not alone or not _isolated():
            yield PROCESSES, "127.0.0.1", [Loopback(stack) for _ in range(count)]
            return
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "bridge", "type", "bridge")
        _ip("addr", "add", f"{_BRIDGE}/24", "dev", "bridge")
        _ip("link", "set", "bridge", "up")
        yield NAMESPACES, _BRIDGE, [_machine(number, stack) for number in range(count)]


def _isolated() -> bool:
    """Leave the network that everybody is in; False where that is not allowed, or there are no tools for the rest."""
    if os.geteuid() != 0 or not _has("ip") or not _has("nsenter"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) == 0)


def _has(program: str) -> bool:
    return subprocess.run(["which", program], capture_output=True, check=False).returncode == 0


def _machine(number: int, stack: contextlib.ExitStack) -> Link:
    """A namespace, which lives as long as the process that was started in it."""
    name = f"node{number}"
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    stack.callback(holder.wait)
    stack.callback(holder.kill)
    ours = os.readlink("/proc/self/ns/net")
    wait_until(f"{name} has a network of its own", lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != ours)
    before = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]
    _ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", name, "netns", str(holder.pid))
    _ip("link", "set", f"to-{name}", "master", "bridge", "up")
    for command in (
        ["addr", "add", f"{_NODE.format(number + 10)}/24", "dev", name],
        ["link", "set", name, "up"],
        ["link", "set", "lo", "up"],
    ):
        _ip(*command, before=before)
    return Link(before, _NODE.format(number + 10), name)


def _ip(*arguments: str, before: Sequence[str] = ()) -> None:
    said = subprocess.run([*before, "ip", *arguments], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        raise OrdealError(f"ip {' '.join(arguments)}: {said.stderr.strip()}")
