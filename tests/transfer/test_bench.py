"""The bench of transfers, at a size at which it measures nothing: it runs, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_bench_of_transfers_runs_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.benchmark.transfers", "--size", "1", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--directory", str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["export", "export,", "fetch", "fetch"]
    assert os.listdir(tmp_path) == []
