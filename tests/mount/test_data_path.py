"""Who moves the data: what is asked for, what is in force, and why."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_ckpt.fuse.passthrough import probe
from scripts.mountpoints import APART, is_mounted
from tests.conftest import MountJob
from tests.mount.containers import NO_PRIVILEGE
from tests.mount.harness import PROGRAM, Mount, wait_until
from tests.mount.runs import DATA_PATH, Desk, one_line, python
from tests.semantics.parity import opened, outcome, put

pytestmark = [pytest.mark.mount, pytest.mark.once]


@pytest.fixture
def _passes(tmp_path: Path) -> None:
    """Only where the kernel can move the data."""
    verdict = probe(tmp_path)
    if not verdict.depth:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(verdict.reason)


def said_of(desk: Desk, place: Path, *options: str, env: str = "auto") -> str:
    """What `-v mount` says of the data path; unmounts again."""
    mounted = desk.cli("-v", "mount", "job", str(place), *options, env={DATA_PATH: env})
    assert mounted.returncode == 0, mounted.stderr
    assert desk.cli("umount", str(place)).returncode == 0
    (line,) = [line for line in mounted.stderr.splitlines() if line.startswith("data path: ")]
    return line.removeprefix("data path: ")


@pytest.mark.usefixtures("_passes")
def test_the_mode_in_force_is_the_one_asked_for_and_why_is_said(desk: Desk, place: Path) -> None:
    kernel, daemon = "passthrough (the kernel moves the data)", "daemon (asked for)"
    assert said_of(desk, place) == kernel
    assert said_of(desk, place, "--data-path", "passthrough") == kernel
    assert said_of(desk, place, "--data-path", "daemon") == daemon
    assert said_of(desk, place, env="daemon") == daemon
    assert said_of(desk, place, "--data-path", "passthrough", env="daemon") == kernel
    assert "ok       passthrough: the kernel moves the data" in desk.cli("doctor").stdout


@pytest.mark.usefixtures("_passes")
def test_a_process_of_many_descriptors_can_ask_too(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(tmp_path, os.O_PATH)]
    try:
        while held[-1] < 1024:
            held.append(os.dup(held[0]))
        assert probe(tmp_path).depth > 0
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_mode_that_there_is_not_is_refused(desk: Desk, place: Path) -> None:
    refused = desk.cli("mount", "job", str(place), "--data-path", "fast")
    assert refused.returncode == 2
    assert "'fast' is not one of 'auto', 'passthrough', 'daemon'" in refused.stderr
    assert not desk.store.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take the privilege away")
def test_passthrough_that_cannot_be_had_is_an_error_that_names_the_reason(desk: Desk, place: Path) -> None:
    for words in (["mount", "job", str(place)], ["training", "run", "job"]):
        command = ["--", *python("print('ran')")] if "run" in words else []
        line = [*NO_PRIVILEGE, *PROGRAM, "--store", str(desk.store), *words, "--data-path", "passthrough", *command]
        said = subprocess.run(line, env=desk.environment(), capture_output=True, text=True, check=False, timeout=60)
        assert said.returncode == (125 if command else 1)
        assert (said.stdout, one_line(said.stderr)) == ("", True), said.stderr
        assert "CAP_SYS_ADMIN" in said.stderr
        assert "--data-path auto" in said.stderr
        assert desk.mounts() == []
    said = subprocess.run(
        [*NO_PRIVILEGE, *PROGRAM, "--store", str(desk.store), "doctor"],
        env=desk.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "warning  no passthrough, the data goes through the daemon: this process has no CAP_SYS_ADMIN" in said.stdout


ON_ANOTHER_DISK = """
set -eu
mount -t {kind} -o {options} {kind} {top}
"$@" --store {top}/store -v mount job {place} > {top}/exports 2> {top}/said
echo weights > {place}/m.bin
until [ -e {place}/.checkpoints/by-name/m.bin@1/m.bin ]; do sleep 0.05; done
echo more >> {place}/m.bin
cat {place}/m.bin {place}/.checkpoints/by-name/m.bin@1/m.bin
grep "data path" {top}/said
"$@" --store {top}/store umount {place}
cat {top}/store/jobs/job/daemon.log >&2
"""


@pytest.mark.usefixtures("_passes")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount other filesystems")
@pytest.mark.parametrize(
    ("kind", "options"), [("tmpfs", "mode=755"), ("overlay", "lowerdir={0}/l,upperdir={0}/u,workdir={0}/w")]
)
def test_the_kernel_moves_the_data_of_a_store_on_another_filesystem(
    desk: Desk, tmp_path: Path, place: Path, kind: str, options: str
) -> None:
    for name in ("l", "u", "w", "top"):
        (tmp_path / name).mkdir()
    script = ON_ANOTHER_DISK.format(kind=kind, options=options.format(tmp_path), top=tmp_path / "top", place=place)
    line = [*APART, "sh", "-c", script, "sh", *PROGRAM]
    environment = desk.environment(**{DATA_PATH: "auto"})
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "weights", "more", "weights", "data path: passthrough (the kernel moves the data)"
    ]  # fmt: skip
    assert "ERROR" not in done.stderr


# -- a kernel that refuses half way -----------------------------------------------------------------------------------

# fuse-ckpt whose kernel takes no backing file as long as a file exists.
REFUSING = """
import os, sys
from fuse_ckpt.cli import main
from fuse_ckpt.fuse import passthrough

lend, number = passthrough.lend, int(os.environ["REFUSE_WITH"])
def refusing(device, fd):
    if os.path.exists(os.environ["REFUSE_IF"]):
        raise OSError(number, os.strerror(number))
    return lend(device, fd)
passthrough.lend = refusing
sys.exit(main(sys.argv[1:]))
"""


def refusing(mount_job: MountJob, monkeypatch: pytest.MonkeyPatch, switch: Path, number: int) -> Mount:
    monkeypatch.setenv("REFUSE_WITH", str(number))
    monkeypatch.setenv("REFUSE_IF", str(switch))
    mounted = mount_job("job", "--data-path", "passthrough", ready=False)
    mounted.mount(program=(sys.executable, "-c", REFUSING))
    mounted.expect_log(f"refuses a backing file.*{os.strerror(number)}")
    return mounted


@pytest.mark.usefixtures("_passes")
@pytest.mark.parametrize("name", ["EPERM", "ELOOP", "ENOMEM", "EMFILE"])
def test_a_file_that_the_kernel_refuses_is_served_by_the_daemon(
    mount_job: MountJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    switch = tmp_path / "refuse"
    mounted = refusing(mount_job, monkeypatch, switch, getattr(errno, name))
    before, refused = mounted.path / "before.bin", mounted.path / "refused.bin"
    put(before, b"0" * 10_000)
    with opened(before, os.O_RDWR) as lent:
        put(switch)
        with opened(refused, os.O_CREAT | os.O_RDWR) as served:
            for fd in (lent, served):
                os.pwrite(fd, b"half", 0)
            switch.unlink()  # from here on the kernel takes files again
            for path, data in ((before, b"half" + b"0" * 9996), (refused, b"half")):
                assert path.read_bytes() == data, "an open file stays what it was at its first open"
                with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                    os.write(fd, b"end")
                assert path.read_bytes() == data + b"end"
            put(switch)
            assert os.pread(served, 99, 0) == b"halfend"
            assert before.read_bytes() == b"half" + b"0" * 9996 + b"end"
    switch.unlink()
    assert refused.read_bytes() == b"halfend"
    mounted.commit()  # what was closed in between may be a checkpoint, too
    for path in (before, refused):
        found = mounted.committed(path.name)[-1]
        assert (mounted.by_id(found) / path.name).read_bytes() == path.read_bytes()
    assert mounted.daemon is not None
    assert mounted.daemon.log.count("refuses a backing file") == 1


@pytest.mark.usefixtures("_passes")
def test_bytes_that_the_kernel_and_the_daemon_move_in_turn_are_one_file(
    mount_job: MountJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the page cache remembers of the one way must not hide what the other wrote."""
    switch = tmp_path / "refuse"
    mounted = refusing(mount_job, monkeypatch, switch, errno.EPERM)
    path = put(mounted.path / "turns.log", b"." * 100_000)
    for number in range(6):
        put(switch) if number % 2 else switch.unlink(missing_ok=True)
        with opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, b"%d" % number * 10, number * 10)
            assert os.pread(fd, 60, 0) == b"".join(b"%d" % n * 10 for n in range(number + 1)).ljust(60, b".")
    switch.unlink()
    assert path.read_bytes() == b"".join(b"%d" % n * 10 for n in range(6)).ljust(100_000, b".")


@pytest.mark.usefixtures("_passes")
def test_a_kernel_that_takes_no_file_at_all_serves_every_file_through_the_daemon(
    mount_job: MountJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mounted = refusing(mount_job, monkeypatch, tmp_path / "refuse", errno.EPERM)
    put(tmp_path / "refuse")
    data = os.urandom(3 << 20)
    for number in range(3):
        put(mounted.path / f"{number}.bin", data + b"%d" % number)
    for number in range(3):
        (found,) = mounted.wait_for(f"{number}.bin")
        assert (mounted.by_id(found) / f"{number}.bin").read_bytes() == data + b"%d" % number
    assert mounted.daemon is not None
    assert mounted.daemon.log.count("refuses a backing file") == 1
    mounted.umount()
    assert not is_mounted(mounted.path)
    wait_until("all three", lambda: len(mounted.committed()) == 3)


# fuse-ckpt whose daemon hears so late that the kernel has let go of the mount that it gives up before.
LATE = """
import sys
from fuse_ckpt.cli import main
from fuse_ckpt.session import service

service.GONE_PATIENCE = 0.0
sys.exit(main(sys.argv[1:]))
"""


def test_a_daemon_that_hears_late_of_the_unmounting_does_not_take_it_for_bound_elsewhere(mount_job: MountJob) -> None:
    mounted = mount_job("late", ready=False).mount(program=(sys.executable, "-c", LATE))
    put(mounted.path / "m.bin")
    mounted.wait_for("m.bin")
    mounted.umount()


# fuse-ckpt as if on a kernel on which nothing can stand between it and libfuse.
UNRELAYED = """
import sys
from fuse_ckpt.cli import main
from fuse_ckpt.fuse import wire

wire._RELAYED_SINCE = (999, 0)
sys.exit(main(sys.argv[1:]))
"""


def test_on_an_old_kernel_libfuse_itself_reads_what_the_kernel_asks(mount_job: MountJob) -> None:
    mounted = mount_job("old", "--data-path", "daemon", ready=False).mount(program=(sys.executable, "-c", UNRELAYED))
    data = os.urandom(3 << 20)
    path = put(mounted.path / "m.bin", data)
    (found,) = mounted.wait_for("m.bin")
    assert path.read_bytes() == (mounted.by_id(found) / "m.bin").read_bytes() == data
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"again", 1 << 20)
    assert len(mounted.wait_for("m.bin", 2)) == 2
    assert os.listdir(mounted.path) == ["m.bin"]
    os.unlink(path)
    assert outcome(os.stat, path) == "ENOENT"
