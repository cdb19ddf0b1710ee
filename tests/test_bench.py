"""The bench, at a size at which it measures nothing: it runs, says what it found, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.mount,
    pytest.mark.once,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("mount_job"),
]  # asked for what it does where none can mount

ROOT = Path(__file__).parents[1]
TINY = ("--scale", "0.002", "--rounds", "1")


def bench(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", *TINY, "--directory", str(directory), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=800,
    )  # fmt: skip


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    directory = tmp_path / "disk"
    directory.mkdir()
    return directory


def test_the_bench_compares_the_mount_with_the_plain_directory_and_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    said = bench(disk, "--only", "save,load,small", "--skip", "load-cold", "--json", str(found))
    assert said.returncode == 0, said.stderr
    rows = [line.split() for line in said.stdout.splitlines()]
    assert ["save", "fuse-ckpt"] in [row[:2] for row in rows]
    told = json.loads(found.read_text())
    assert [case["name"] for case in told["cases"]] == ["save", "small", "load"]
    assert {*told["cases"][2]["directories"]} == {"plain", "fuse-ckpt", "read view"}
    ours = told["cases"][0]["directories"]["fuse-ckpt"]
    assert len(ours["seconds"]) == 1
    assert ours["speed"]["plain"]["median"] > 0
    assert told["machine"]["data path"] in ("passthrough", "daemon")
    assert list(disk.iterdir()) == []


def test_the_bench_tells_what_the_daemon_pays_and_how_a_full_index_behaves(disk: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    said = bench(disk, "--only", "daemon", "--index", "50", "--commits", "5", "--json", str(found))
    assert said.returncode == 0, said.stderr
    told = json.loads(found.read_text())
    figures = {figure["name"]: figure["median"] for figure in told["daemon"] + told["index"]}
    assert figures["daemon CPU per GiB, commit included"] > 0
    assert figures["close() until available"] >= 0.2, "the quiet period of a single file"
    assert figures["daemon memory, 5 checkpoints committed"] > 1
    assert list(disk.iterdir()) == []


def test_a_further_directory_stands_beside_the_others_and_is_left_as_it_was(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    said = bench(disk, "--only", "stat", "--against", f"elsewhere={other}")
    assert said.returncode == 0, said.stderr
    assert any(line.startswith("stat  elsewhere ") for line in said.stdout.splitlines())
    assert list(other.iterdir()) == []


def test_a_bench_that_cannot_go_on_says_why_and_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    said = bench(disk, "--only", "stat", "--example", str(tmp_path / "missing.py"))
    assert said.returncode == 1
    assert "scripts/bench: the daemon of " in said.stderr
    assert list(disk.iterdir()) == []
