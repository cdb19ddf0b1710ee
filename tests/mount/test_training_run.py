"""`training run`: what a training program gets, and what becomes of what it saved, whatever dies meanwhile."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import signal
import termios

import pytest

from tests.mount.harness import wait_until
from tests.mount.runs import INPUT, OUTPUT, TITLE, Desk, one_line, python

pytestmark = pytest.mark.mount

SAVE = python("(out / 'm.bin').write_bytes(b'weights')")
SAVE_AND_WAIT = python(
    """
    (out / 'first.bin').write_bytes(b'first')
    print('saved')
    print('heard', sys.stdin.readline().strip())
    (out / 'second.bin').write_bytes(b'second')
    """
)


def rows(table: str) -> list[list[str]]:
    """The rows of the captured table, each a list of cells."""
    lines = table[table.index(TITLE) :].splitlines()
    return [[cell.strip() for cell in line.split("│")] for line in lines[2:]]


# -- what the command gets -----------------------------------------------------------------------------------------


def test_what_was_captured_is_shown_and_standard_output_is_the_commands_own(desk: Desk) -> None:
    done = desk.run("job", command=python("(out / 'm.bin').write_bytes(b'weights'); print('only this')"))
    assert done.returncode == 0
    assert done.stdout == "only this\n"
    (found,) = desk.listed("job")
    assert rows(done.stderr)[0][:3] == [found["id"], "m.bin", "0"]
    header = next(line for line in done.stderr.splitlines() if line.startswith("ID "))
    names = [
        "ID",
        "NAME",
        "NODE",
        "STEP",
        "TRAIN LOSS",
        "EVAL LOSS",
        "MODEL",
        "VERSION",
        "INFERENCE READY",
        "TIMESTAMP",
    ]
    assert [cell.strip() for cell in header.split("│")] == names
    assert desk.mounts() == []


def test_a_restart_shows_what_it_captured_itself(desk: Desk) -> None:
    desk.run("job", command=python("(out / 'a.bin').write_bytes(b'a')"))
    done = desk.run("job", "--restart", command=python("(out / 'b.bin').write_bytes(b'b')"))
    assert [row[1] for row in rows(done.stderr)] == ["b.bin"]
    assert [one["name"] for one in desk.listed("job")] == ["a.bin", "b.bin"]


def test_a_command_that_writes_nothing_ends_well(desk: Desk) -> None:
    done = desk.run("job", command=python("assert os.listdir(out) == []"))
    assert done.returncode == 0
    assert "no checkpoint" in done.stderr
    listed = desk.cli("training", "checkpoints", "job")
    assert (listed.returncode, listed.stdout.splitlines()[0], len(listed.stdout.splitlines())) == (0, TITLE, 2)


def test_standard_input_is_passed_on(desk: Desk) -> None:
    done = desk.run("job", command=python("print(sys.stdin.read())"), input="given\nlines")
    assert done.stdout == "given\nlines\n"


def test_the_environment_and_the_working_directory_are_passed_on(desk: Desk) -> None:
    show = python("print(os.environ['SEEN'], os.environ['GIVEN'], os.getcwd())")
    assert desk.run("job", "--env", "GIVEN=2", command=show, env={"SEEN": "1"}).stdout == "1 2 /\n"


def test_without_a_checkpoint_there_is_no_input_directory(desk: Desk) -> None:
    show = python(f"print(os.environ.get('{INPUT}'))")
    assert desk.run("job", command=show, env={INPUT: str(desk.top / "input")}).stdout == "None\n"


def test_it_mounts_and_binds_where_the_variables_say(desk: Desk) -> None:
    output, given = desk.top / "output", desk.top / "input"
    output.mkdir()
    given.mkdir()
    desk.run("job", command=SAVE)
    show = python(
        f"""
        given = Path(os.environ['{INPUT}'])
        print(out, given, os.path.ismount(out), os.path.ismount(given), (given / 'm.bin').read_text())
        try:
            (given / 'new').touch()
        except OSError as exc:
            print(exc.errno)
        """
    )
    done = desk.run("next", "-C", "job/m.bin", command=show, env={OUTPUT: str(output), INPUT: str(given)})
    assert done.stdout == f"{output} {given} True True weights\n30\n", done.stderr
    assert (os.listdir(output), os.listdir(given)) == ([], [])


def test_the_mounts_path_is_the_same_for_every_run_of_a_job(desk: Desk) -> None:
    show = python("print(out)")
    first = desk.run("job", command=show).stdout
    assert desk.run("job", "--restart", command=show).stdout == first != desk.run("other", command=show).stdout


def test_64_mib_are_kept_as_they_were_written(desk: Desk) -> None:
    write = python(
        """
        import hashlib
        digest = hashlib.sha256()
        with open(out / 'big.bin', 'wb') as file:
            for _ in range(16):
                block = os.urandom(4 << 20)
                digest.update(block)
                file.write(block)
        print(digest.hexdigest())
        """
    )
    done = desk.run("job", command=write)
    (found,) = desk.listed("job")
    assert found["sizeBytes"] == 64 << 20
    fetched = desk.cli("checkpoint", "fetch", found["id"], "--destination", str(desk.top / "fetched"))
    assert fetched.returncode == 0, fetched.stderr
    content = (desk.top / "fetched" / "big.bin").read_bytes()
    assert hashlib.sha256(content).hexdigest() == done.stdout.strip()


# -- how it ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(7)", 7),
        ("sys.exit(125)", 125),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("os.abort()", 134),
    ],
)
def test_it_ends_as_the_command_did(desk: Desk, how: str, code: int) -> None:
    done = desk.run("job", command=python(f"(out / 'm.bin').write_bytes(b'w')\n{how}"))
    assert done.returncode == code
    assert [one["name"] for one in desk.listed("job")] == ["m.bin"]  # closed before, whatever came then
    runtime = desk.inspected("training", "job")["runtime"]
    expected = "succeeded" if code == 0 else "failed" if code < 126 else "interrupted"
    assert (runtime["exitCode"], runtime["status"]) == (code, expected)


def test_a_command_that_cannot_begin_ends_as_in_a_shell_and_makes_no_job(desk: Desk) -> None:
    plain = desk.top / "plain"
    plain.write_text("no program")
    for command, code in ((["no-such-command"], 127), ([str(desk.top / "nothing")], 127), ([str(plain)], 126)):
        done = desk.run("job", command=command)
        assert (done.returncode, one_line(done.stderr)) == (code, True), done.stderr
        assert desk.cli("training", "checkpoints", "job").returncode == 3
    assert desk.run("job", command=["true"]).returncode == 0


def test_a_place_that_cannot_be_mounted_at_keeps_the_command_from_beginning(desk: Desk) -> None:
    full = desk.top / "full"
    full.mkdir()
    (full / "something").touch()
    done = desk.run("job", command=python(f"Path({str(desk.top)!r}, 'began').touch()"), env={OUTPUT: str(full)})
    assert (done.returncode, one_line(done.stderr)) == (2, True), done.stderr
    assert not (desk.top / "began").exists()
    assert desk.run("job", command=["true"]).returncode == 0, "a run that never began is no reason to refuse the next"


def test_a_second_run_of_a_job_is_refused_unless_it_restarts(desk: Desk) -> None:
    desk.run("job", command=SAVE)
    again = desk.run("job", command=SAVE)
    assert again.returncode == 125
    assert one_line(again.stderr)
    assert again.stderr.endswith('{"code":"ET0009"}\n')
    done = desk.run("job", "--restart", command=python("print(os.listdir(out), (out / 'm.bin').read_text())"))
    assert done.stdout == "['m.bin'] weights\n"


def test_the_same_command_line_serves_the_first_start_and_every_restart(desk: Desk) -> None:
    show = python(
        f"""
        given = os.environ.get('{INPUT}')
        step = int(Path(given, 'step.json').read_text()) if given else 0
        print(step)
        (out / 'step.json').write_text(str(step + 1))
        """
    )
    for step in range(3):
        done = desk.run("job", "--restart", "-C", "job/step.json", "--if-any", command=show)
        assert (done.returncode, done.stdout) == (0, f"{step}\n"), done.stderr
    assert desk.run("job", "--restart", "-C", "job/other.json", command=show).returncode == 125


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_forwarded_and_the_command_may_still_save(desk: Desk, number: signal.Signals) -> None:
    started = desk.start(
        "job",
        command=python(
            f"""
            def save(number, frame):
                (out / 'last.bin').write_bytes(b'last')
                sys.exit(9)
            signal.signal({int(number)}, save)
            print('ready')
            while True:
                signal.pause()
            """
        ),
    )
    started.wait_line("ready")
    started.process.send_signal(number)
    assert started.wait() == 9
    assert [one["name"] for one in desk.listed("job")] == ["last.bin"]


def test_a_command_that_a_forwarded_signal_ends_makes_128_and_its_number(desk: Desk) -> None:
    started = desk.start("job", command=python("print('ready'); time.sleep(60)"))
    started.wait_line("ready")
    started.process.send_signal(signal.SIGTERM)
    assert started.wait() == 143
    assert desk.inspected("training", "job")["runtime"]["status"] == "interrupted"


def test_a_terminals_interrupt_reaches_the_command_once(desk: Desk) -> None:
    """A byte per delivery through the wakeup descriptor: Python's own handlers would count two quick ones as one."""
    controller, terminal = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    started = desk.start(
        "job",
        command=python(
            """
            import select
            reading, writing = os.pipe2(os.O_NONBLOCK)
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.set_wakeup_fd(writing)
            print('ready')
            while not select.select([reading], [], [], 60)[0]:
                pass
            time.sleep(0.5)  # for a second one to arrive
            print('interrupted', len(os.read(reading, 100)))
            """
        ),
        stdin=terminal,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    try:
        started.wait_line("ready")
        os.write(controller, b"\x03")
        assert started.wait() == 0
        assert started.wait_line(r"interrupted (\d+)")[1] == "1"
    finally:
        os.close(controller)
        os.close(terminal)


# -- what dies meanwhile ----------------------------------------------------------------------------------------------


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


# -- resume -----------------------------------------------------------------------------------------------------------


def test_an_input_is_leased_recorded_as_parent_and_read_only(desk: Desk) -> None:
    desk.run("job", command=SAVE)
    (parent,) = desk.listed("job")
    started = desk.start("next", "-C", parent["id"][-8:], command=SAVE_AND_WAIT)
    started.wait_line("saved")
    refused = desk.cli("checkpoint", "delete", parent["id"], "--yes")
    assert (refused.returncode, one_line(refused.stderr)) == (5, True), refused.stderr
    assert len(desk.listed("job")) == 1
    started.tell()
    assert started.wait() == 0
    assert {one["parentId"] for one in desk.listed("next")} == {parent["id"]}
    assert desk.inspected("training", "next")["runtime"]["parentID"] == parent["id"]
    assert desk.cli("checkpoint", "delete", parent["id"], "--yes").returncode == 0
    gone = desk.run("third", "-C", parent["id"], command=["true"])
    assert (gone.returncode, gone.stderr) == (125, f"Unknown Checkpoint: {parent['id']}\n")


def test_an_input_is_leased_from_before_the_command_to_its_end_though_training_run_is_killed(desk: Desk) -> None:
    desk.run("job", command=SAVE)
    (parent,) = desk.listed("job")
    started = desk.start("next", "-C", parent["id"], command=SAVE_AND_WAIT)
    started.wait_line("saved")
    started.process.kill()
    started.process.wait()
    assert desk.cli("checkpoint", "delete", parent["id"], "--yes").returncode == 5
    started.tell()
    wait_until("the mount has gone", lambda: not desk.mounts() and not desk.locked("next"))
    assert desk.cli("checkpoint", "delete", parent["id"], "--yes").returncode == 0


def test_flags_of_flexais_platform_are_accepted_with_a_line(desk: Desk) -> None:
    flags = ["--repository-url", "https://example.com/r.git", "--dataset", "d", "-a", "2", "--secret", "A=b"]
    done = desk.run("job", *flags, command=python("print('ran')"))
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert [line for line in done.stderr.splitlines() if "--dataset" in line and "--repository-url" in line]


def test_the_job_is_in_progress_while_it_runs_and_listed_live(desk: Desk) -> None:
    started = desk.start("job", command=SAVE_AND_WAIT)
    started.wait_line("saved")
    desk.wait_for("job", 1)
    assert desk.inspected("training", "job")["runtime"]["status"] == "in progress"
    assert [one["name"] for one in desk.listed("job")] == ["first.bin"]
    jobs = json.loads(desk.cli("training", "list", "--json").stdout)
    assert [(one["name"], one["status"]) for one in jobs] == [("job", "in progress")]
    started.tell("you")
    assert started.wait() == 0
    assert started.out == "saved\nheard you\n"
    assert desk.inspected("training", "job")["runtime"]["status"] == "succeeded"
