"""`training run`: what a training program gets, and what becomes of what it saved, whatever dies meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal

import pytest

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


def test_a_starter_that_ignores_its_childrens_ends_is_no_obstacle(desk: Desk) -> None:
    ignore = lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # noqa: E731
    assert desk.start("job", command=python("sys.exit(5)"), preexec_fn=ignore).wait() == 5


@pytest.mark.parametrize("name", ["two words", "a,b\\c=d", "line\nbreak", "é", "deep/" * 40 + "down"])
def test_a_store_and_a_mount_point_may_lie_anywhere(desk: Desk, name: str) -> None:
    """Spaces and the like are escaped in mountinfo, commas part mount options, a socket's address holds 107 bytes."""
    desk.store = desk.top / name
    place = desk.top / "places" / name
    place.mkdir(parents=True)
    write = python(
        "(out / 'm.bin').write_bytes(b'w'); print(os.path.ismount(out), out == Path(sys.argv[1]))", str(place)
    )
    done = desk.run("job", command=write, env={OUTPUT: str(place)})
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr
    assert os.listdir(place) == []
    assert desk.run("job", "--restart", command=["true"]).returncode == 0
    assert [one["name"] for one in desk.listed("job")] == ["m.bin"]
    mounted = desk.cli("mount", "job", str(place))
    assert mounted.returncode == 0, mounted.stderr
    assert os.listdir(place) == ["m.bin"]
    assert desk.cli("umount", str(place)).returncode == 0
