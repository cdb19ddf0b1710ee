"""What is done to a mount from outside: its daemon stopped, its connection cut, its memory and descriptors used up."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_ckpt.store import Layout, locks
from tests.conftest import MountJob
from tests.mount.harness import PROGRAM, Mount, wait_until
from tests.mount.runs import one_line
from tests.semantics.parity import put
from tests.staging.trainer import torch_zip

pytestmark = pytest.mark.mount
MIB = 1 << 20

WRITE = "import sys; f = open(sys.argv[1], 'wb'); f.write(b'w' * 100_000); f.close()"


@contextlib.contextmanager
def started(code: str, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, ended with the block."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def opens(process: subprocess.Popen[bytes]) -> bool:
    """Whether it is in openat(2), and waits there."""
    number = Path(f"/proc/{process.pid}/syscall").read_text().split()[0]
    return number in ("257", "56")  # x86-64, arm64


# -- stopped ----------------------------------------------------------------------------------------------------------


def stop(mounted: Mount) -> None:
    """Stop the daemon, not inside a transaction, for the end of which others wait."""
    lock = Layout(mounted.store).lock("index")

    def is_stopped() -> bool:
        os.kill(mounted.pid, signal.SIGSTOP)
        wait_until("it is stopped", lambda: "T" in Path(f"/proc/{mounted.pid}/stat").read_text().rsplit(")")[-1])
        taken = locks.try_exclusive(lock)
        if taken is None:
            os.kill(mounted.pid, signal.SIGCONT)
            return False
        taken.close()
        return True

    wait_until("it is stopped between two transactions", is_stopped)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may see where a process waits")
def test_a_daemon_that_is_stopped_and_goes_on_loses_nothing_and_its_clients_can_be_killed(mounted: Mount) -> None:
    put(mounted.path / "before.bin")
    mounted.wait_for("before.bin")
    (mounted.path / "logs").mkdir()
    with contextlib.ExitStack() as stack:
        stop(mounted)
        # In two directories: who waits for the other's lock on one, and not for the daemon, cannot be killed anywhere.
        waiting, doomed = (
            stack.enter_context(started(WRITE, mounted.path / name)) for name in ("waits.bin", "logs/killed.log")
        )
        stack.callback(os.kill, mounted.pid, signal.SIGCONT)  # before the two are waited for
        wait_until("both wait for the daemon", lambda: opens(waiting) and opens(doomed))
        doomed.kill()
        assert doomed.wait(10) == -signal.SIGKILL
        assert mounted.cli("training", "checkpoints", "job", "--json").returncode == 0
        said = mounted.cli("stats")
        assert said.returncode == 0
        assert "does not answer" in said.stdout
        os.kill(mounted.pid, signal.SIGCONT)
        assert waiting.wait(30) == 0
    (one,) = mounted.wait_for("waits.bin")
    assert (mounted.by_id(one) / "waits.bin").read_bytes() == b"w" * 100_000


# -- cut off ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def connections(tmp_path: Path) -> Iterator[Path]:
    """The kernel's directory of FUSE connections."""
    if os.geteuid() != 0:
        pytest.skip("only root may cut a connection that is not its own")
    place = tmp_path / "connections"
    place.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.once
def test_a_connection_that_is_cut_ends_the_daemon_and_the_next_mount_has_everything(
    mounted: Mount, connections: Path
) -> None:
    put(mounted.path / "kept.bin")
    mounted.wait_for("kept.bin")
    (mounted.path / "step_1").mkdir()
    (mounted.path / "step_1" / "m.pt").write_bytes(torch_zip())
    file = os.open(mounted.path / "open.bin", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(file, b"half")
    (connections / str(os.stat(mounted.path).st_dev) / "abort").write_text("1")
    with pytest.raises(OSError, match=r"connection abort|not connected"):
        os.listdir(mounted.path)
    with pytest.raises(OSError, match="not connected"):
        os.close(file)
    assert mounted.daemon is not None
    assert mounted.daemon.wait() == 0, mounted.daemon.log
    mounted.daemon = None
    mounted.allow_log("open.bin")
    mounted.mount()
    mounted.wait_for("step_1")
    assert [one.name for one in mounted.committed()] == ["kept.bin", "step_1"]
    assert (mounted.path / "open.bin").read_bytes() == b"half"


@pytest.mark.once
def test_a_mount_in_use_is_not_unmounted_and_goes_on(mounted: Mount) -> None:
    with open(mounted.path / "open.bin", "wb", buffering=0) as file:
        file.write(b"half")
        said = mounted.cli("umount", str(mounted.path))
        assert (said.returncode, one_line(said.stderr)) == (5, True), said.stderr
        assert "in use" in said.stderr
        file.write(b" and half")
    (one,) = mounted.wait_for("open.bin")
    assert (mounted.by_id(one) / "open.bin").read_bytes() == b"half and half"


# -- starved ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def own_descriptors(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    count += len(os.listdir("/proc/self/fd"))  # what earlier tests of this process still hold
    if before[1] < count:
        pytest.skip(f"this process may not have {count} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_many(directory: Path, held: list[int]) -> None:
    for number in range(100):
        held.append(os.open(directory / f"f{number}.log", os.O_WRONLY | os.O_CREAT, 0o644))


def test_a_daemon_without_descriptors_says_so_to_the_program_and_lives_on(mount_job: MountJob) -> None:
    mounted = mount_job("job", ready=False)
    mounted.mount(program=("prlimit", "--nofile=64:64", *PROGRAM))
    mounted.allow_log("Too many open files")
    put(mounted.path / "before.bin")
    mounted.wait_for("before.bin")
    held: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            open_many(mounted.path, held)
        assert 20 < len(held) < 100
        assert os.statvfs(mounted.path).f_blocks > 0
        os.write(held[0], b"what is open can be written")
    finally:
        for fd in held:
            os.close(fd)
    assert (mounted.path / "f0.log").read_bytes() == b"what is open can be written"
    put(mounted.path / "after.bin")
    mounted.wait_for("after.bin")


def test_ten_thousand_files_are_open_at_once(mounted: Mount) -> None:
    count = 10_000
    directory = mounted.path / "logs"  # which make no checkpoint
    directory.mkdir()
    with own_descriptors(count + 100):
        held: list[int] = []
        try:
            for n in range(count):
                held.append(os.open(directory / f"{n}.log", os.O_RDWR | os.O_CREAT, 0o644))
            for n, fd in enumerate(held):
                os.write(fd, b"%d" % n)
            assert [os.pread(fd, 10, 0) for fd in held] == [b"%d" % n for n in range(count)]
        finally:
            for fd in held:
                os.close(fd)
    assert len(os.listdir(directory)) == count
    put(mounted.path / "after.bin")
    mounted.wait_for("after.bin")


def test_a_save_larger_than_the_daemon_s_memory_is_committed(mount_job: MountJob) -> None:
    """The index alone may map 1 GiB; what is left is less than the file, of which no more than a piece is held."""
    limit = 1700 * MIB  # bytes of address space
    mounted = mount_job("job", ready=False).mount(program=("prlimit", f"--as={limit}", *PROGRAM))
    with open(mounted.path / "big.bin", "wb") as file:
        for number in range(700):
            file.write(number.to_bytes(4, "big") * (MIB // 4))
    (one,) = mounted.wait_for("big.bin", patience=120)
    assert one.size == 700 * MIB


@pytest.mark.once
def test_too_little_memory_to_begin_with_is_said_in_one_line(mount_job: MountJob) -> None:
    mounted = mount_job("job")
    command = ["prlimit", f"--as={300 * MIB}", *PROGRAM, "--store", str(mounted.store), "checkpoint", "list"]
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (said.returncode, one_line(said.stderr)) == (1, True), said.stderr
    assert "memory" in said.stderr
