"""Policies and statistics around a training run, as a person meets them."""

from __future__ import annotations

import json

import pytest

from tests.mount.runs import Desk, one_line, python

pytestmark = pytest.mark.mount

SAVES = """
for step in range(1, 4):
    (out / f"step_{step}.bin").write_bytes(b"%d" % step)
    time.sleep(0.5)
"""


def test_a_run_keeps_to_its_policy_to_the_end(desk: Desk) -> None:
    said = desk.run("job", "--retain", "keep-last=1", "--trash-ttl", "0", command=python(SAVES))
    assert said.returncode == 0, said.stderr
    assert [record["name"] for record in desk.listed("job")] == ["step_3.bin"]
    assert "step_3.bin" in said.stderr
    assert len(list((desk.store / "blobs").glob("*/*"))) == 1
    said = desk.run("job", "--restart", command=python("(out / 'step_4.bin').write_bytes(b'4')"))
    assert said.returncode == 0, said.stderr
    assert [record["name"] for record in desk.listed("job")] == ["step_4.bin"], "the policy is the job's"
    desk.run("job", "--restart", "--retain", "none", command=python("(out / 'step_5.bin').write_bytes(b'5')"))
    assert [record["name"] for record in desk.listed("job")] == ["step_4.bin", "step_5.bin"]


def test_a_bad_policy_is_a_usage_error_and_nothing_runs(desk: Desk) -> None:
    for option in (["--retain", "keep-last=0"], ["--trash-ttl", "soon"], ["--min-free", "lots"]):
        said = desk.run("job", *option, command=python("print('ran')"))
        assert (said.returncode, said.stdout) == (2, "")
        assert one_line(said.stderr)
    assert not desk.store.exists()


def test_stats_tell_of_a_run_what_moves_its_data_and_what_was_removed(desk: Desk) -> None:
    code = SAVES + "print('saved', flush=True)\nsys.stdin.readline()"
    run = desk.start("job", "--retain", "keep-last=1", command=python(code))
    run.wait_line("saved")
    desk.wait_for("job", 1)
    document = json.loads(desk.cli("stats", "--json").stdout)
    [mount] = document["mounts"]
    assert mount["job"] == "job"
    assert mount["data_path"] in ("passthrough", "daemon")
    assert {"removed", "collected", "freed"} <= set(mount["kept"])
    assert document["jobs"][0]["mounted"] is True
    assert document["jobs"][0]["retain"] == "keep-last=1"
    lines = desk.cli("stats", "--prometheus").stdout.splitlines()
    assert f'fuse_ckpt_data_path{{job="job",data_path="{mount["data_path"]}"}} 1' in lines
    assert 'fuse_ckpt_mounted{job="job"} 1' in lines
    assert any(line.startswith('fuse_ckpt_committed_total{job="job"} ') for line in lines)
    run.tell()
    assert run.wait() == 0
