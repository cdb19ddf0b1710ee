"""The ordeals, at a size at which they take seconds: they run, find nothing, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.mountpoints import APART
from scripts.ordeals.programs import PACKAGES, programs
from scripts.ordeals.thirdparty import LACKING, PASS, PLAIN, Outcome, report

pytestmark = [
    pytest.mark.mount,
    pytest.mark.once,
    pytest.mark.usefixtures("mount_job"),
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[1]
Told = dict[str, Any]
Ordeal = Callable[..., Told]


@pytest.fixture
def ordeal(tmp_path: Path) -> Ordeal:
    """Run one, which must find nothing; returns what it told."""

    def run(name: str, *arguments: str, patience: float = 800) -> Told:
        disk, found = tmp_path / "disk", tmp_path / "found.json"
        disk.mkdir()
        alone = APART if name == "powerloss" else ()  # as its script does
        said = subprocess.run(
            [*alone, sys.executable, "-m", f"scripts.ordeals.{name}", *arguments, "--json", str(found)],
            capture_output=True, text=True, check=False, cwd=ROOT, timeout=patience,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(disk)},
        )  # fmt: skip
        assert said.returncode == 0, said.stdout + said.stderr
        assert list(disk.iterdir()) == []
        with open("/proc/self/mountinfo") as lines:
            assert not [line for line in lines if str(disk) in line]
        told: Told = json.loads(found.read_text())
        return told

    return run


def need_root() -> None:
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("loop devices need root")


def test_kills_at_random_lose_nothing(ordeal: Ordeal) -> None:
    told = ordeal("crash", "--kills", "8", "--longest", "1", "--seed", "1")
    assert told["kills"] == 8
    assert told["acknowledged"] > 8
    assert told["files_checked"] > 0


def test_a_power_cut_at_any_write_loses_nothing(ordeal: Ordeal) -> None:
    need_root()
    told = ordeal("powerloss", "--points", "24", "--saves", "2", "--seed", "1")
    assert told["prefixes replayed"] == 24
    assert told["acknowledged"] >= 8


def test_a_filesystem_that_is_cut_off_loses_nothing(ordeal: Ordeal) -> None:
    need_root()
    told = ordeal("powerloss", "--godown", "3", "--seed", "1")
    assert told["cuts"] == 3
    assert told["acknowledged"] > 0


@pytest.mark.frameworks
def test_four_machines_train_into_one_checkpoint_and_kills_cost_nothing(ordeal: Ordeal) -> None:
    told = ordeal("training", "--kills", "3", "--seed", "1")
    assert told["network"] == ("network namespaces" if os.geteuid() == 0 else "plain processes")
    assert sum(told["kills"].values()) >= 3
    assert told["committed"] >= 4
    assert told["files_read"] == told["committed"] * 5, "a shard of each rank, and .metadata"
    assert {row["node"] for row in told["rows"]} == {"0,1,2,3"}
    assert len(told["rows"]) == told["committed"]
    assert told["resumed"] == 4 * 4, "steps elsewhere, of each rank"


def test_many_writers_and_readers_at_once_lose_nothing(ordeal: Ordeal) -> None:
    told = ordeal("ordeal", "--minutes", "0.3", "--seed", "1")
    assert told["saves"] > 64
    assert all(told[name] > 0 for name in ("listing", "fetch", "read_view", "kill_a_command"))


def test_programs_of_others_find_nothing_that_they_do_not_find_in_a_plain_directory(ordeal: Ordeal) -> None:
    missing = {one.needs for one in programs() if one.quick} - {name for name in PACKAGES if _installed(name)}
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {', '.join(sorted(missing))}")
    told = ordeal("thirdparty", "--quick")
    assert told["worse"] == []
    assert {one["place"] for one in told["outcomes"]} >= {PLAIN, "daemon"}


def _installed(program: str) -> bool:
    return subprocess.run(["which", program], capture_output=True, check=False).returncode == 0


def test_what_a_mount_alone_fails_is_worse_and_what_the_plain_directory_fails_too_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def outcomes(program: str, plain: str, ours: str) -> list[Outcome]:
        return [Outcome(program, PLAIN, plain, 1.0), Outcome(program, "daemon", ours, 1.0)]

    places = [PLAIN, "daemon"]
    assert report(outcomes("a", PASS, PASS) + outcomes("b", "FAIL", "FAIL"), places, None) == 0
    assert report(outcomes("a", PASS, "FAIL"), places, None) == 1
    assert report(outcomes("a", PASS, LACKING), places, None) == 1
    assert report(outcomes("stress-ng fiemap", PASS, LACKING), places, None) == 0
    assert report(outcomes("stress-ng fiemap", PASS, "HUNG"), places, None) == 1
    assert "worse than plain: a on daemon" in capsys.readouterr().out
