"""Real torch and transformers under `training run`. Importing them takes seconds: a walk is one test."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.mount.harness import wait_until
from tests.mount.runs import SCRIPTS, Desk

pytestmark = [pytest.mark.mount, pytest.mark.once]

DIGITS = [sys.executable, str(SCRIPTS / "training" / "digits.py"), "--checkpoint-every", "20"]
TINY = [sys.executable, str(SCRIPTS / "training" / "tiny_trainer.py"), "--text", str(SCRIPTS.parent / "LICENSE")]


def steps(output: str) -> dict[int, str]:
    """What digits.py printed of each step that it saved: its losses, by step."""
    return {int(step): losses for step, losses in re.findall(r"^step (\d+)  (.*)  saved$", output, re.MULTILINE)}


@pytest.mark.timeout(600)
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(desk: Desk) -> None:
    whole = desk.run("whole", command=[*DIGITS, "--epochs", "5"])
    assert whole.returncode == 0, whole.stderr
    expected = steps(whole.stdout)
    assert list(expected) == [20, 40, 60, 80, 100]
    assert len(desk.listed("whole")) == 5, "each save of the one file"

    started = desk.start("job", command=[*DIGITS, "--epochs", "50", "--pace", "2"])
    pid = int(started.wait_line(r"training in process (\d+), .*")[1])
    desk.wait_for("job", 2)
    os.kill(pid, signal.SIGKILL)
    assert started.wait() == 137
    before = desk.listed("job")

    resumed = desk.run("resumed", "-C", "job:latest", command=[*DIGITS, "--epochs", "5"])
    assert resumed.returncode == 0, resumed.stderr
    at = int(re.findall(r"^resumed at step (\d+)", resumed.stdout)[0])
    # The newest that was saved; the kill may have come between the save and the word that it is.
    assert at - max(steps(started.out)) in (0, 20)
    assert steps(resumed.stdout) == {step: losses for step, losses in expected.items() if step > at}
    assert {one["parentId"] for one in desk.listed("resumed")} == {before[-1]["id"]}

    back = desk.run("job", "--restart", "-C", before[0]["id"], command=[*DIGITS, "--epochs", "3"])
    assert back.returncode == 0, back.stderr
    assert back.stdout.startswith("resumed at step 20 ")
    assert steps(back.stdout) == {step: expected[step] for step in (40, 60)}
    assert desk.listed("job")[: len(before)] == before, "the later ones stay listed"
    assert [one["parentId"] for one in desk.listed("job")[len(before) :]] == [before[0]["id"]] * 2


@pytest.mark.timeout(600)
def test_a_trainer_that_rotates_loses_nothing_and_resumes_from_what_it_rotated(desk: Desk) -> None:
    started = desk.start("tiny", command=TINY)
    wait_until("it ended", lambda: started.process.poll() is not None, patience=240)
    assert started.wait() == 0, started.err
    found = {one["name"]: one for one in desk.listed("tiny")}
    left = {path.name for path in (desk.store / "jobs" / "tiny" / "work").glob("checkpoint-*")}
    assert left == {"checkpoint-24", "checkpoint-30"}
    assert set(found) == {"", *(f"checkpoint-{step}" for step in (6, 12, 18, 24, 30))}

    history = logged(desk, found["checkpoint-30"]["id"])
    for step in (6, 12, 18, 24, 30):
        one = found[f"checkpoint-{step}"]
        assert (one["step"], one["model"], one["inferenceReady"]) == (step, "GPT2LMHeadModel", True)
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", one["version"])
        assert one["resumable"] is True
        assert one["trainLoss"] == pytest.approx(history[step]["loss"])
        assert one["evalLoss"] == pytest.approx(history[step]["eval_loss"])
    table = desk.cli("training", "checkpoints", "tiny").stdout
    assert all(one["id"] in table for one in found.values())

    rotated = found["checkpoint-12"]["id"]
    resumed = desk.start("again", "-C", rotated, command=[*TINY, "--steps", "18"])
    wait_until("it ended", lambda: resumed.process.poll() is not None, patience=60)
    assert resumed.wait() == 0, resumed.err
    assert "finished at step 18" in resumed.out
    again = {one["name"]: one for one in desk.listed("again")}
    assert set(again) == {"", "checkpoint-18"}, "it began at step 12"
    assert again["checkpoint-18"]["trainLoss"] == pytest.approx(found["checkpoint-18"]["trainLoss"], rel=1e-2)
    assert again["checkpoint-18"]["parentId"] == rotated


def logged(desk: Desk, checkpoint: str) -> dict[int, dict[str, float]]:
    """What its trainer_state.json says, all entries of a step together, read without our own reader."""
    place = desk.top / "fetched"
    done = desk.cli("checkpoint", "fetch", checkpoint, "--destination", str(place), "--include", "trainer_state.json")
    assert done.returncode == 0, done.stderr
    by_step: dict[int, dict[str, float]] = {}
    for entry in json.loads(Path(place, "trainer_state.json").read_text())["log_history"]:
        by_step.setdefault(entry["step"], {}).update(entry)
    return by_step
