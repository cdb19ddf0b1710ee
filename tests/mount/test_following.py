"""`checkpoint wait`, `watch` and `lineage` beside real training."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MountJob
from tests.mount.harness import PROGRAM, wait_until
from tests.mount.runs import Desk, Started, python

pytestmark = pytest.mark.mount


def events(started: Started) -> list[dict[str, Any]]:
    return [json.loads(line) for line in started.out.splitlines(keepends=True) if line.endswith("\n")]


def follow(desk: Desk, *arguments: str) -> Started:
    command = [*PROGRAM, "--store", str(desk.store), "checkpoint", *arguments]
    return desk.launch(command, env={"TMPDIR": str(desk.top)})


def test_a_checkpoint_is_waited_for_and_evaluated_while_training_goes_on(desk: Desk) -> None:
    waiting = follow(desk, "wait", "job/checkpoint-1")
    evaluation = f"cat {{path}}/optimizer.pt > {desk.top}/evaluated-$FUSE_CKPT_NAME"
    watching = follow(desk, "watch", "job", "--since", "all", "--until-end", "--exec", evaluation)
    training = desk.start(
        "job",
        command=python(
            """
            for n in (1, 2):
                (out / f'checkpoint-{n}').mkdir()
                (out / f'checkpoint-{n}/optimizer.pt').write_bytes(b'state %d' % n)
                (out / f'checkpoint-{n}/trainer_state.json').write_text('{"global_step": %d}' % n)
                print('saved', n)
                sys.stdin.readline()
            """
        ),
    )
    training.wait_line("saved 1")
    assert waiting.wait() == 0
    wait_until("it was evaluated", (desk.top / "evaluated-checkpoint-1").exists)
    training.tell()
    training.wait_line("saved 2")
    training.tell()
    assert training.wait() == 0
    assert "still use the mount" not in training.err
    assert watching.wait() == 0
    assert watching.err == ""
    assert desk.mounts() == []
    assert list(desk.top.glob("fuse-ckpt-watch-*")) == []
    for n in (1, 2):
        assert (desk.top / f"evaluated-checkpoint-{n}").read_bytes() == b"state %d" % n
    told = events(watching)
    first, second = (one for one in told if one["event"] == "available")
    assert waiting.out == f"{first['id']}\n"
    assert (first["name"], first["step"], second["name"]) == ("checkpoint-1", 1, "checkpoint-2")
    # Each was pending for a second at least, which is when it is looked at.
    assert {one["name"] for one in told if one["event"] == "pending"} <= {"checkpoint-1", "checkpoint-2"}


@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_watch_that_is_ended_leaves_no_mount(seeded: Desk, number: int) -> None:
    evaluation = f"cat {{path}}/* >> {seeded.top}/evaluated"
    watching = follow(seeded, "watch", "kept", "--since", "all", "--exec", evaluation)
    done = seeded.top / "evaluated"
    wait_until("both were evaluated", lambda: done.exists() and sorted(done.read_text()) == ["a", "b"])
    (mounted,) = seeded.mounts()
    assert Path(mounted).name.startswith("fuse-ckpt-watch-")
    watching.process.send_signal(number)
    assert watching.wait() == (143 if number == signal.SIGTERM else -number)
    wait_until("it is gone", lambda: not seeded.mounts() and not seeded.processes())
    assert Path(mounted).exists() is (number == signal.SIGKILL)


@pytest.mark.once
def test_a_watch_goes_on_through_the_death_and_the_next_start_of_the_daemon(
    mount_job: MountJob, tmp_path: Path
) -> None:
    mounted = mount_job()
    out = tmp_path / "watched"
    with out.open("wb") as stream:
        command = [*PROGRAM, "--store", str(mounted.store), "checkpoint", "watch", "job", "--since", "all"]
        watching = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        looking = f"/proc/{watching.pid}/fd"
        wait_until("it looks", lambda: any("data.mdb" in str(link.resolve()) for link in Path(looking).iterdir()))
        (mounted.path / "first.bin").write_bytes(b"1")
        mounted.wait_for("first.bin")
        mounted.kill()
        mounted.mount()
        (mounted.path / "second.bin").write_bytes(b"2")
        mounted.wait_for("second.bin")

        def told() -> list[tuple[str, str]]:
            found = [json.loads(line) for line in out.read_text().splitlines()]
            return [(one["event"], one["name"]) for one in found if one["event"] != "pending"]

        wait_until("both are told", lambda: len(told()) >= 2)
        assert told() == [("available", "first.bin"), ("available", "second.bin")]
    finally:
        watching.send_signal(signal.SIGTERM)
        assert watching.wait(30) == 143


@pytest.mark.once
def test_a_run_is_recorded_with_its_sources_and_a_resumed_one_with_its_parent(desk: Desk) -> None:
    sources = desk.top / "sources"
    sources.mkdir()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    (sources / "train.py").write_text("pass\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], cwd=sources, check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=sources, check=True, capture_output=True, text=True).stdout
    save = python("(out / 'm.bin').write_bytes(os.urandom(8))")
    whole = [*PROGRAM, "--store", str(desk.store), "training", "run"]
    assert desk.launch([*whole, "first", "--", *save], cwd=sources).wait() == 0
    (sources / "train.py").write_text("changed\n")
    assert desk.launch([*whole, "second", "-C", "first/m.bin", "--", *save], cwd=sources).wait() == 0
    document = json.loads(desk.cli("checkpoint", "lineage", "first/m.bin", "--json").stdout)
    first, second = document["runs"]
    assert [run["provenance"]["revision"] for run in (first, second)] == [head.strip()] * 2
    assert [run["provenance"]["dirty"] for run in (first, second)] == [False, True]
    assert first["provenance"]["directory"] == str(sources)
    assert first["command"] == save
    assert second["parentID"] == first["checkpoints"][0]["id"]
    assert [run["status"] for run in (first, second)] == ["succeeded", "succeeded"]
    inspected = desk.inspected("training", "second")
    assert inspected["runtime"]["provenance"] == second["provenance"]
