"""kill -9 at any point: a destination is whole, or nothing there says so; and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_ckpt.model import Checkpoint, Connection, Provider
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import RemoteSource, push
from tests.mount.harness import PROGRAM, wait_until
from tests.transfer.conftest import Save, objects, place_in_bucket
from tests.transfer.proxy import Proxy
from tests.transfer.seaweed import Seaweed

FILES = {f"d/{n}.bin": os.urandom(2000 + n) for n in range(8)} | {"big.bin": os.urandom(17 << 20)}
MANIFEST = "fuse-ckpt.json"


@pytest.fixture
def checkpoint(store: Store, save: Save) -> Checkpoint:
    return save(FILES)


def begun(store: Store, *arguments: str) -> subprocess.Popen[bytes]:
    """The program on this store, in a process that can be killed."""
    return subprocess.Popen(
        [*PROGRAM, "--store", str(store.layout.root), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_an_export_that_is_killed_at_any_request(
    store: Store, checkpoint: Checkpoint, seaweed: Seaweed, faulty: Proxy
) -> None:
    where = place_in_bucket("killed")
    store.add_connection(seaweed.connection(endpoint=faulty.endpoint))
    command = ["checkpoint", "export", checkpoint.id, "--storage-provider", "lake", "--destination-path", str(where)]
    for at in (0, 1, 3, 8, 16):
        process = begun(store, *command)

        def kill(method: str, path: str, count: int, at: int = at, pid: int = process.pid) -> None:
            if count == at:
                os.kill(pid, signal.SIGKILL)

        faulty.decide = kill
        faulty.restart()
        code, err = ended(process)
        left = objects(seaweed.remote(), where)
        assert code == -signal.SIGKILL or (code == 0 and MANIFEST in left), err
        assert {name: left[name] for name in left.keys() & FILES.keys()}.items() <= FILES.items()
        assert MANIFEST not in left or FILES.keys() <= left.keys()
    faulty.decide = lambda method, path, count: None
    assert ended(begun(store, *command)) == (0, b"")
    assert objects(seaweed.remote(), where).keys() == {*FILES, MANIFEST}
    assert push(store, "back", RemoteSource(seaweed.remote(), where)).size == checkpoint.size


def test_a_fetch_that_is_killed_at_any_file(store: Store, checkpoint: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "there/out"
    partial = out.parent / f"out.partial-{checkpoint.id}"
    command = ["checkpoint", "fetch", checkpoint.id, "--destination", str(out)]
    for count in range(0, len(FILES), 2):
        process = begun(store, *command)

        def reached(count: int = count, process: subprocess.Popen[bytes] = process) -> bool:
            # It may be renamed meanwhile; os.walk does not mind.
            there = sum(len(files) for _, _, files in os.walk(partial)) if partial.exists() else -1
            return there >= count or process.poll() is not None

        wait_until(f"{count} files", reached)
        process.kill()
        code, err = ended(process)
        if out.exists():  # whole, as is asserted below: the kill came too late
            break
        assert code == -signal.SIGKILL, err
    else:
        assert ended(begun(store, *command)) == (0, b"")
    assert {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()} == FILES
    assert os.listdir(out.parent) == ["out"]


def test_ctrl_c_is_130_and_says_that_it_goes_on(
    store: Store, checkpoint: Checkpoint, seaweed: Seaweed, faulty: Proxy
) -> None:
    where = place_in_bucket("ctrl-c-of-a-person")
    store.add_connection(seaweed.connection(endpoint=faulty.endpoint))
    command = ["checkpoint", "export", checkpoint.id, "--storage-provider", "lake", "--destination-path", str(where)]
    process = begun(store, *command)

    def interrupt(method: str, path: str, count: int) -> None:
        if count == 4:
            process.send_signal(signal.SIGINT)

    faulty.decide = interrupt
    code, err = ended(process)
    assert (code, err.strip()) == (130, b"Interrupted: the same command goes on from here.")
    assert MANIFEST not in objects(seaweed.remote(), where)
    faulty.decide = lambda method, path, count: None
    assert ended(begun(store, *command)) == (0, b"")


MEMORY = """
import sys
from fuse_ckpt.cli import main
code = main(sys.argv[1:])
# Not ru_maxrss: that one counts the process that started us too.
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def test_memory_does_not_grow_with_the_size(store: Store, tmp_path: Path) -> None:
    """320 MiB there and back in at most 256 MiB."""
    (tmp_path / "archive").mkdir()
    store.add_connection(Connection("disk", Provider.FILE, 1, root=str(tmp_path / "archive")))
    big = tmp_path / "big.bin"
    big.touch()
    os.truncate(big, 320 << 20)
    there = ["--storage-provider", "disk"]
    for command in (
        ["push", "big", "--file", str(big)],
        ["export", "big", *there, "--destination-path", "x"],
        ["push", "back", *there, "--source-path", "x"],
        ["fetch", "back", "--destination", str(tmp_path / "out")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, "--store", str(store.layout.root), "checkpoint", *command],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert int(done.stdout.split()[-1]) <= 256, (command, done.stdout)
    assert (tmp_path / "out/big.bin").stat().st_size == 320 << 20
