"""A run from a checkpoint, and how it is seen while it runs."""

from __future__ import annotations

import json

import pytest

from fuse_ckpt.model import Metadata
from fuse_ckpt.store import Store
from tests.mount.harness import wait_until
from tests.mount.runs import Desk, one_line, python
from tests.store.conftest import commit

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


def test_a_newer_checkpoint_that_is_damaged_is_passed_over_in_words(desk: Desk) -> None:
    with Store.open(desk.store) as store:
        whole, newer = (
            commit(store, "m.bin", {"m.bin": content}, metadata=Metadata(resumable=True)) for content in (b"1", b"2")
        )
        blob = store.blob_path(store.manifest(newer.id).entries[0].digest)
    blob.write_bytes(b"x")
    assert desk.cli("checkpoint", "verify", "--all").returncode == 4
    resumed = desk.run("next", "-C", "job:latest", command=["true"])
    assert resumed.returncode == 0
    said = f"resuming from {whole.id}: the newer {newer.id} (m.bin) is failed: damaged in the store: 'm.bin'"
    assert said in resumed.stderr
    by_name = desk.run("other", "-C", whole.id, command=["true"])
    assert newer.id not in by_name.stderr
    blob.write_bytes(b"2")


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
