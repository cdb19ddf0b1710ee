"""What becomes of a run, and of what it saved, whatever dies meanwhile."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.mount.harness import wait_until
from tests.mount.runs import INPUT, Desk, one_line, python

pytestmark = pytest.mark.mount

SAVE_AND_WAIT = python(
    """
    (out / 'first.bin').write_bytes(b'first')
    print('saved')
    print('heard', sys.stdin.readline().strip())
    (out / 'second.bin').write_bytes(b'second')
    """
)


def test_a_save_that_a_kill_tears_is_failed_and_never_the_latest(desk: Desk) -> None:
    started = desk.start(
        "job",
        command=python(
            """
            import io, zipfile
            whole = io.BytesIO()
            with zipfile.ZipFile(whole, 'w') as archive:
                archive.writestr('m/data.pkl', b'\\x80\\x02}q\\x00.')
                archive.writestr('m/version', b'3')
                archive.writestr('m/data/0', bytes(100_000))
            (out / 'm.pt').write_bytes(whole.getvalue())
            file = open(out / 'torn.pt', 'wb', buffering=0)
            file.write(whole.getvalue()[:50_000])
            raw = open(out / 'raw.bin', 'wb', buffering=0)
            raw.write(b'half of it')
            print('pid', os.getpid())
            time.sleep(60)
            """
        ),
    )
    os.kill(int(started.wait_line(r"pid (\d+)")[1]), signal.SIGKILL)
    assert started.wait() == 137
    found = {one["name"]: one["status"] for one in desk.listed("job", all=True)}
    desk.expect_log("(torn.pt|raw.bin)")
    assert found == {"m.pt": "available", "torn.pt": "failed", "raw.bin": "failed"}
    assert [one["name"] for one in desk.listed("job")] == ["m.pt"]
    assert "failed" in started.err
    torn = next(one for one in desk.committed("job") if one.name == "torn.pt")
    assert desk.inspected("checkpoint", torn.id)["status"]["failure"]
    resumed = desk.run("next", "-C", torn.id, command=["true"])
    assert (resumed.returncode, one_line(resumed.stderr)) == (125, True), resumed.stderr
    assert "--force" in resumed.stderr
    assert desk.cli("training", "checkpoints", "next").returncode == 3
    show = python(f"print(len(Path(os.environ['{INPUT}'], 'torn.pt').read_bytes()))")
    assert desk.run("next", "-C", torn.id, "--force", command=show).stdout == "50000\n"


def test_after_a_kill_of_training_run_the_mount_lasts_as_long_as_the_command(desk: Desk) -> None:
    started = desk.start("job", command=SAVE_AND_WAIT)
    started.wait_line("saved")
    (daemon,) = desk.daemons_of(started)
    started.process.kill()
    started.process.wait()
    early = desk.run("job", "--restart", command=["true"])
    assert (early.returncode, one_line(early.stderr)) == (125, True), early.stderr
    assert desk.mounts()[0] in early.stderr, "who has it is named"
    started.tell("me")
    wait_until("the daemon has gone", lambda: not os.path.exists(f"/proc/{daemon}") and not desk.mounts())
    assert [one["name"] for one in desk.listed("job")] == ["first.bin", "second.bin"]
    assert desk.inspected("training", "job")["runtime"]["status"] == "interrupted"
    done = desk.run("job", "--restart", command=python("print(sorted(os.listdir(out)))"))
    assert done.stdout == "['first.bin', 'second.bin']\n", done.stderr


def test_after_a_kill_of_the_daemon_the_run_ends_and_a_restart_finds_everything(desk: Desk) -> None:
    started = desk.start(
        "job",
        "--quiet-period",
        "600",
        command=python(
            """
            (out / 'first.bin').write_bytes(b'first')
            (out / 'step_2').mkdir()
            (out / 'step_2' / 'model.bin').write_bytes(b'second')
            print('saved')
            sys.stdin.readline()
            try:
                (out / 'third.bin').write_bytes(b'third')
            except OSError as exc:
                print('error', exc.errno)
                sys.exit(3)
            """
        ),
    )
    started.wait_line("saved")
    (first,) = desk.wait_for("job", 1)
    (daemon,) = desk.daemons_of(started)
    os.kill(daemon, signal.SIGKILL)
    started.tell()
    assert started.wait() == 3
    assert re.search(r"^error (107|103)$", started.out, re.MULTILINE), started.out
    assert "daemon" in started.err
    assert "Traceback" not in started.err
    assert [one["id"] for one in desk.listed("job")] == [first.id]
    show = python("print(sorted(os.listdir(out)), (out / 'step_2' / 'model.bin').read_text())")
    done = desk.run("job", "--restart", command=show)
    assert done.stdout == "['first.bin', 'step_2'] second\n", done.stderr
    found = {one["name"]: (one["status"], one["id"]) for one in desk.listed("job", all=True)}
    assert found["first.bin"] == ("available", first.id)
    assert found["step_2"][0] == "available"
    assert len(found) == len(desk.listed("job", all=True)) == 2


def test_what_a_process_in_the_background_still_writes_is_kept_and_ends_the_mount(desk: Desk) -> None:
    fifo = desk.top / "fifo"
    os.mkfifo(fifo)
    later = python(f"file = open(out / 'late.bin', 'wb'); open({str(fifo)!r}).read(); file.write(b'late')")
    leave = python(f"subprocess.Popen({later!r})\nwhile not (out / 'late.bin').exists(): time.sleep(0.01)\nsys.exit(4)")
    done = desk.start("job", command=leave)
    assert done.wait() == 4
    assert "still use" in done.err
    assert len(desk.mounts()) == 1
    fifo.write_text("go")
    wait_until("the mount has gone", lambda: not desk.mounts())
    wait_until("the daemon has gone", lambda: not desk.locked("job"))
    assert [one["name"] for one in desk.listed("job")] == ["late.bin"]


def test_a_process_in_the_background_that_uses_nothing_of_the_mount_delays_nothing(desk: Desk) -> None:
    fifo = desk.top / "fifo"
    os.mkfifo(fifo)
    later = python(f"open({str(fifo)!r}).read()")
    started = desk.start("job", command=python(f"subprocess.Popen({later!r}); (out / 'm.bin').write_bytes(b'w')"))
    assert started.wait() == 0
    assert desk.mounts() == []
    assert not desk.locked("job")
    fifo.write_text("go")


def test_after_a_kill_of_everything_the_next_run_clears_the_stale_mount_and_commits(desk: Desk) -> None:
    write = python(
        """
        (out / 'step_1').mkdir()
        (out / 'step_1' / 'm.bin').write_bytes(b'weights')
        print('pid', os.getpid())
        time.sleep(60)
        """
    )
    started = desk.start("job", command=write)
    pids = [int(started.wait_line(r"pid (\d+)")[1]), *desk.daemons_of(started), started.pid]
    for pid in reversed(pids):
        os.kill(pid, signal.SIGKILL)
    started.process.wait()
    (stale,) = desk.mounts()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(stale)
    done = desk.run("job", "--restart", command=python("print(os.listdir(out))"))
    assert (done.returncode, done.stdout) == (0, "['step_1']\n"), done.stderr
    assert [(one["name"], one["status"]) for one in desk.listed("job", all=True)] == [("step_1", "available")]


def test_a_reader_of_its_messages_that_has_gone_disturbs_nothing(desk: Desk) -> None:
    """A log collector died: standard error is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    started = desk.start("job", command=python("(out / 'm.bin').write_bytes(b'w'); sys.exit(6)"), stderr=writing)
    os.close(writing)
    assert started.wait() == 6
    assert [one["name"] for one in desk.listed("job")] == ["m.bin"]
    assert desk.mounts() == []


def test_of_two_first_runs_at_once_one_runs(desk: Desk) -> None:
    both = [desk.start("job", command=python("print('ran'); sys.stdin.readline()")) for _ in range(2)]
    wait_until("one is refused", lambda: any(one.process.poll() is not None for one in both))
    (refused,) = [one for one in both if one.process.poll() is not None]
    (runs,) = [one for one in both if one is not refused]
    assert (refused.wait(), refused.out) == (125, "")
    assert one_line(refused.err), refused.err
    runs.wait_line("ran")
    runs.tell()
    assert runs.wait() == 0
    assert desk.inspected("training", "job")["runtime"]["status"] == "succeeded"
