"""`--durability close` (S15): a close that has returned survives a power cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MountJob
from tests.mount.disks import small_disk
from tests.mount.harness import Mount, wait_until
from tests.mount.runs import Desk, python
from tests.semantics.parity import put
from tests.staging.trainer import torch_zip

pytestmark = pytest.mark.mount

# fuse-ckpt whose close waits as long as one file exists, and fails as long as another does.
SLOW = """
import errno, os, sys, time
from fuse_ckpt.cli import main
from fuse_ckpt.vfs import durability

sync = durability._sync
def slow(fd, directories):
    switch = os.environ["SWITCH"]
    open(switch + ".reached", "w").close()
    while os.path.exists(switch + ".wait"):
        time.sleep(0.01)
    if os.path.exists(switch + ".fail"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    sync(fd, directories)
durability._sync = slow
sys.exit(main(sys.argv[1:]))
"""


SAVE = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
os.write(fd, sys.stdin.buffer.read())
try:
    os.close(fd)
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWITCH", str(tmp_path / "switch"))
    return tmp_path / "switch"


@pytest.fixture
def slow(mount_job: MountJob, switch: Path) -> Iterator[Mount]:
    mounted = mount_job("job", "--durability", "close", ready=False).mount(program=(sys.executable, "-c", SLOW))
    yield mounted
    switch.with_suffix(".wait").unlink(missing_ok=True)


def test_close_waits_for_the_disk_and_nobody_else_does(slow: Mount, switch: Path) -> None:
    wait = put(switch.with_suffix(".wait"))
    (slow.path / "step_1").mkdir()
    writer = threading.Thread(target=(slow.path / "step_1" / "m.pt").write_bytes, args=(torch_zip(),))
    writer.start()
    wait_until("its close is asked for", switch.with_suffix(".reached").exists)
    assert os.listdir(slow.path / "step_1") == ["m.pt"]
    assert (slow.path / "step_1" / "m.pt").read_bytes() == torch_zip(), "a reader's close waits for nothing"
    assert writer.is_alive()
    wait.unlink()
    writer.join(30)
    assert not writer.is_alive()


def test_an_error_of_the_disk_is_the_program_s_and_the_checkpoint_is_failed(slow: Mount, switch: Path) -> None:
    fail = put(switch.with_suffix(".fail"))
    said = subprocess.run(
        [sys.executable, "-c", SAVE, str(slow.path / "m.pt")], input=torch_zip(), capture_output=True, check=True
    )
    assert said.stdout == b"Input/output error\n"
    fail.unlink()
    slow.expect_log("its close failed: Input/output error")
    (one,) = slow.wait_for("m.pt", status="failed")
    assert "Input/output error" in (one.failure or "")
    (slow.path / "m.pt").write_bytes(torch_zip(b"again"))
    slow.wait_for("m.pt")


@pytest.mark.once
def test_without_it_close_waits_for_nothing(mount_job: MountJob, switch: Path) -> None:
    mounted = mount_job("job", ready=False).mount(program=(sys.executable, "-c", SLOW))
    put(switch.with_suffix(".wait"))
    put(mounted.path / "m.bin")
    mounted.wait_for("m.bin")
    assert not switch.with_suffix(".reached").exists()


@pytest.mark.once
def test_the_daemon_syncs_the_file_and_each_directory_above_it(mount_job: MountJob, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("strace is not installed")
    mounted = mount_job("job", "--durability", "close", "--quiet-period", "60")
    (mounted.path / "a" / "b").mkdir(parents=True)
    trace = tmp_path / "trace"
    watch = subprocess.Popen(
        ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", trace, "-p", str(mounted.pid)],
        stderr=subprocess.PIPE,
    )
    try:
        assert watch.stderr is not None
        assert b"attached" in watch.stderr.readline()
        (mounted.path / "a" / "b" / "m.pt").write_bytes(torch_zip())
        seen = trace.read_text()
    finally:
        watch.terminate()
        watch.communicate()
    work = mounted.store / "jobs" / "job" / "work"
    assert "fdatasync" in seen
    for synced in (work / "a" / "b" / "m.pt", work / "a" / "b", work / "a", work):
        assert f"<{synced}>)" in seen, seen


def test_a_training_run_with_it_ends_and_everything_is_there(desk: Desk) -> None:
    """Whoever waits for a close, waits for the daemon alone, which waits for nobody."""
    save = python(
        """
        for n in range(5):
            (out / 'm.bin').write_bytes(b'%d' % n)
            (out / f'step_{n}').mkdir()
            (out / f'step_{n}' / 'w.bin').write_bytes(b'w%d' % n)
        subprocess.run(['cp', '-r', str(out / 'step_0'), str(out / 'step_9')], check=True)
        """
    )
    done = desk.run("job", "--durability", "close", command=save)
    assert done.returncode == 0, done.stderr
    names = [one["name"] for one in desk.listed("job")]
    assert names.count("m.bin") == 5
    assert {f"step_{n}" for n in (0, 1, 2, 3, 4, 9)} <= set(names)


@pytest.mark.once
@pytest.mark.parametrize("durability", ["close", "commit"])
def test_what_was_closed_is_there_after_a_power_cut(mount_job: MountJob, tmp_path: Path, durability: str) -> None:
    from scripts.ordeals import disks

    with small_disk(tmp_path, 32 << 20) as disk:
        mounted = mount_job("job", "--durability", durability, "--quiet-period", "60", store=disk / "store")
        (mounted.path / "a" / "b").mkdir(parents=True)
        (mounted.path / "a" / "b" / "m.pt").write_bytes(torch_zip())
        disks.cut(disk)
        mounted.kill()
        disks.plug_in_again(tmp_path / "disk.img", disk)
        file = disk / "store" / "jobs" / "job" / "work" / "a" / "b" / "m.pt"
        whole = file.exists() and file.read_bytes() == torch_zip()
        assert whole == (durability == "close"), "the other one shows that the test can tell"
        mounted.allow_log("a'? .*is not whole|m.pt")
        mounted.mount()
        assert mounted.close() == []
