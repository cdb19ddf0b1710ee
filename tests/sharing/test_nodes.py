"""Machines that are killed while they share an object store, at a size at which it takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "options",
    [
        ["--kills", "20", "--groups", "12", "--seed", "1", "--network"],
        ["--kills", "20", "--groups", "12", "--seed", "1", "--nodes", "3", "--provider", "file"],
    ],
    ids=["s3", "file"],
)
def test_ranks_that_are_killed_lose_nothing_and_decide_once(tmp_path: Path, options: list[str]) -> None:
    found = tmp_path / "found.json"
    disk = tmp_path / "disk"
    disk.mkdir()
    said = subprocess.run(
        [sys.executable, "-m", "scripts.ordeals.nodes", *options, "--directory", str(disk), "--json", str(found)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=280, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stderr == ""
    assert os.listdir(disk) == []
    told: dict[str, Any] = json.loads(found.read_text())
    assert told["kills"] >= int(options[1])
    assert told["at_fault_points"] > 0
    assert told["committed"] + told["aborted"] + told["deleted"] == told["groups"] >= int(options[3])
