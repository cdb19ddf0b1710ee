"""`doctor`: what this machine lacks for mounting, and how to get it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scripts.mountpoints import APART
from tests.mount.containers import NO_DEVICE, NO_PRIVILEGE
from tests.mount.harness import PROGRAM
from tests.mount.runs import Desk

pytestmark = [
    pytest.mark.mount,
    pytest.mark.once,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take things away"),
]


def _doctor(desk: Desk, *before: str, store: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    line = [*before, *PROGRAM, "--store", str(store or desk.store), "doctor"]
    return subprocess.run(
        line, env=desk.environment(**env), capture_output=True, text=True, check=False, timeout=60, cwd="/"
    )


def test_the_doctor_names_what_is_missing_and_how_to_get_it(seeded: Desk, place: Path) -> None:
    well = _doctor(seeded)
    assert (well.returncode, well.stderr) == (0, "")
    assert "missing" not in well.stdout

    through = _doctor(seeded, *NO_PRIVILEGE)
    assert (through.returncode, "fusermount3" in through.stdout) == (0, True), through.stdout
    for lacking, remedy in (
        (_doctor(seeded, *NO_PRIVILEGE, PATH=str(place)), "apt install fuse3"),
        (_doctor(seeded, *NO_DEVICE), "--device /dev/fuse"),
    ):
        assert lacking.returncode == 1
        assert lacking.stdout.count("missing  ") == 1
        assert remedy in lacking.stdout


@pytest.mark.parametrize(
    ("kind", "options"), [("tmpfs", "mode=755"), ("overlay", "lowerdir={0}/l,upperdir={0}/u,workdir={0}/w")]
)
def test_the_doctor_warns_of_a_store_that_will_not_last(desk: Desk, tmp_path: Path, kind: str, options: str) -> None:
    for name in ("l", "u", "w", "top"):
        (tmp_path / name).mkdir()
    top = tmp_path / "top"
    mount = f'mount -t {kind} -o {options.format(tmp_path)} {kind} {top} && exec "$@"'
    for store in (top, top / "not" / "yet"):
        said = _doctor(desk, *APART, "sh", "-c", mount, "sh", store=store)
        assert said.returncode == 0, "a warning is no failure"
        (at,) = [number for number, line in enumerate(said.stdout.splitlines()) if line.startswith("warning")]
        assert kind in said.stdout.splitlines()[at]
        assert "--store" in said.stdout.splitlines()[at + 1]
        assert not (store / "format").exists()
