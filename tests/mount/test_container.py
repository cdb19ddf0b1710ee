"""In a container, and beside one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scripts.mountpoints import is_mounted
from tests.conftest import MountJob
from tests.mount.containers import PLACES, VOLUME, contained, why_none
from tests.mount.harness import PROGRAM, Mount, wait_until
from tests.mount.runs import INPUT, OUTPUT, Desk, python

pytestmark = pytest.mark.mount


@pytest.fixture(autouse=True)
def _needs_a_container() -> None:
    reason = why_none()
    if reason is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


# -- the daemon inside, beside the training ---------------------------------------------------------------------------


class Volume:
    """A store in a volume, and containers that have it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.desk.store.mkdir()

    def run(self, command: list[str], *, init: bool) -> subprocess.CompletedProcess[str]:
        line = contained(command, bound={VOLUME: self.desk.store}, device=True, init=init)
        environment = self.desk.environment(FUSE_CKPT_STORE=VOLUME, **PLACES)
        return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def volume(desk: Desk) -> Volume:
    return Volume(desk)


def test_training_run_is_the_first_process_of_a_container(volume: Volume) -> None:
    show = python(
        """
        (out / 'm.bin').write_bytes(b'weights')
        print(os.getppid(), out, os.path.ismount(out))
        """
    )
    done = volume.run([*PROGRAM, "training", "run", "job", "--", *show], init=True)
    assert (done.returncode, done.stdout) == (0, "1 /output-checkpoint True\n"), done.stderr
    (found,) = volume.desk.listed("job")
    assert (found["name"], found["status"]) == ("m.bin", "available")
    assert volume.desk.inspected("training", "job")["runtime"]["status"] == "succeeded"

    show = python(
        f"""
        given = Path(os.environ['{INPUT}'])
        print(given, os.path.ismount(given), (given / 'm.bin').read_text(), os.listdir(out))
        try:
            (given / 'm.bin').write_bytes(b'other')
        except OSError as exc:
            print(exc.errno)
        sys.exit(6)
        """
    )
    done = volume.run([*PROGRAM, "training", "run", "next", "-C", "job/m.bin", "--", *show], init=True)
    assert (done.returncode, done.stdout) == (6, "/input-checkpoint True weights []\n30\n"), done.stderr


def test_orphans_that_end_in_the_container_are_reaped(volume: Volume) -> None:
    orphan = python(
        """
        def states():
            for name in filter(str.isdigit, os.listdir('/proc')):
                try:
                    yield int(name), Path('/proc', name, 'stat').read_text().rpartition(')')[2].split()[:2]
                except OSError:
                    pass
        reading, writing = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                os.write(writing, str(os.getpid()).encode())
            os._exit(0)
        os.wait()
        orphan = int(os.read(reading, 100))
        deadline = time.monotonic() + 10
        while os.path.exists(f'/proc/{orphan}') and time.monotonic() < deadline:
            time.sleep(0.01)
        print([pid for pid, (state, parent) in states() if state == 'Z'])
        """
    )
    done = volume.run([*PROGRAM, "training", "run", "job", "--", *orphan], init=True)
    assert done.stdout == "[]\n", done.stderr


def test_nothing_is_left_in_the_container(volume: Volume) -> None:
    """A shell is pid 1 here, so that somebody is there to look; the daemon's last milliseconds are waited for."""
    run = f"{' '.join(PROGRAM)} training run job -- sh -c 'echo weights > \"${OUTPUT}/m.bin\"' || exit"
    look = f"grep -c 'fuse_ckpt {VOLUME}/' /proc/self/mountinfo; ls -A {' '.join(PLACES.values())}"
    wait = "for i in $(seq 100); do set -- /proc/[0-9]*; [ $# -eq 1 ] && break; sleep 0.1; done; cat /proc/[0-9]*/comm"
    done = volume.run(["sh", "-c", f"{run}; {look}; {wait}; true"], init=True)
    mounts, *rest = done.stdout.splitlines()
    assert mounts == "0", done.stdout
    assert sorted(line for line in rest if line) == ["/input-checkpoint:", "/output-checkpoint:", "sh"]
    assert len(volume.desk.listed("job")) == 1


def test_a_container_that_is_killed_leaves_nothing_that_the_next_cannot_use(volume: Volume) -> None:
    """The whole pid namespace dies with its first process: training, `training run` and daemon at once."""
    write = python("(out / 'm.bin').write_bytes(b'weights'); print('saved'); time.sleep(60)")
    line = contained([*PROGRAM, "training", "run", "job", "--", *write], bound={VOLUME: volume.desk.store}, device=True)
    started = volume.desk.launch(line, env={"FUSE_CKPT_STORE": VOLUME, **PLACES})
    started.wait_line("saved")
    started.process.kill()
    started.process.wait()
    wait_until("the job is free", lambda: not volume.desk.locked("job"))
    assert volume.desk.inspected("training", "job")["runtime"]["status"] == "interrupted"
    show = python("print(os.listdir(out))")
    done = volume.run([*PROGRAM, "training", "run", "job", "--restart", "--", *show], init=True)
    assert (done.returncode, done.stdout) == (0, "['m.bin']\n"), done.stderr
    assert [(one["name"], one["status"]) for one in volume.desk.listed("job", all=True)] == [("m.bin", "available")]


# -- the daemon outside, the training inside --------------------------------------------------------------------------


def test_a_container_loads_its_input_and_saves_to_its_output_from_outside(mounted: Mount) -> None:
    save = python(
        """
        import torch
        from safetensors.torch import save_file
        (out / 'step_1').mkdir()
        torch.save({'w': torch.arange(1000)}, out / 'step_1' / 'm.pt')
        save_file({'w': torch.arange(1000)}, out / 'step_1' / 'm.safetensors')
        """
    )
    subprocess.run(save, env=os.environ | {OUTPUT: str(mounted.path)}, check=True, timeout=60)
    (parent,) = mounted.wait_for("step_1")
    load = python(
        """
        import torch
        from safetensors.torch import load_file
        given = Path('/input-checkpoint')
        mapped = torch.load(given / 'm.pt', mmap=True)['w']
        assert all(torch.equal(w, torch.arange(1000)) for w in (
            mapped, torch.load(given / 'm.pt')['w'], load_file(given / 'm.safetensors')['w']))
        for attempt in (
            lambda: (given / 'm.pt').open('r+b'), lambda: (given / 'new').touch(), lambda: (given / 'm.pt').unlink(),
            lambda: (given / 'new').mkdir(), lambda: (given / 'm.pt').rename(given / 'n.pt'),
            lambda: (given / 'm.pt').chmod(0o600), lambda: os.utime(given / 'm.pt'),
        ):
            try:
                attempt()
            except OSError as exc:
                print(exc.errno, end=' ')
        torch.save({'w': mapped + 1}, out / 'next.pt')
        """
    )
    line = contained(load, bound={PLACES[OUTPUT]: mounted.path}, read_only={PLACES[INPUT]: mounted.by_id(parent)})
    done = subprocess.run(line, env=os.environ | PLACES, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "30 " * 7), done.stderr
    (found,) = mounted.wait_for("next.pt")
    assert (mounted.by_id(found) / "next.pt").read_bytes() == (mounted.path / "next.pt").read_bytes()
    assert is_mounted(mounted.path), "the mount outlives the container"


def test_what_processes_that_cannot_be_seen_save_is_committed(mount_job: MountJob) -> None:
    """The daemon is in a pid namespace of its own: the kernel tells it pid 0 of every writer."""
    mounted = mount_job(ready=False)
    mounted.mount(program=("unshare", "--pid", "--fork", "--kill-child", *PROGRAM))
    (mounted.path / "m.bin").write_bytes(b"weights")
    (mounted.path / "step_1").mkdir()
    (mounted.path / "step_1" / "m.bin").write_bytes(b"others")
    mounted.wait_for("m.bin")
    mounted.umount()
    assert sorted(one.name for one in mounted.committed()) == ["m.bin", "step_1"]


def test_what_is_bound_in_a_container_is_served_to_its_end(mounted: Mount, desk: Desk) -> None:
    (mounted.path / "m.bin").write_bytes(b"weights")
    (found,) = mounted.wait_for("m.bin")
    read = python("print('ready'); sys.stdin.readline(); print(Path('/input-checkpoint/m.bin').read_text())")
    started = desk.launch(contained(read, read_only={PLACES[INPUT]: mounted.by_id(found)}))
    started.wait_line("ready")
    said = mounted.cli("umount", str(mounted.path))
    assert said.returncode == 5
    assert "still bound" in said.stderr
    assert not is_mounted(mounted.path)
    daemon, mounted.daemon = mounted.daemon, None
    assert daemon is not None
    assert daemon.process.poll() is None
    started.tell()
    assert started.wait() == 0
    assert started.out == "ready\nweights\n"
    assert daemon.wait() == 0


def test_umount_says_that_it_is_still_bound_and_the_daemon_ends_with_what_is_bound(
    mounted: Mount, tmp_path: Path
) -> None:
    (mounted.path / "m.bin").write_bytes(b"weights")
    (found,) = mounted.wait_for("m.bin")
    given = tmp_path / "given"
    given.mkdir()
    subprocess.run(["mount", "--bind", mounted.by_id(found), given], check=True)
    try:
        said = mounted.cli("umount", str(mounted.path))
        assert (said.returncode, said.stderr.count("\n")) == (5, 1), said.stderr
        assert "still bound" in said.stderr
        daemon, mounted.daemon = mounted.daemon, None
        assert daemon is not None
        assert daemon.process.poll() is None
        assert (given / "m.bin").read_bytes() == b"weights"
    finally:
        subprocess.run(["umount", given], check=True)
    assert daemon.wait() == 0
