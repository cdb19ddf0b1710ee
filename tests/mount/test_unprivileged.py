"""As a user with no privilege: fusermount3 mounts, and nothing can be bound."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.mountpoints import APART
from tests.mount.harness import PROGRAM
from tests.mount.runs import DATA_PATH, INPUT, OUTPUT, Desk

pytestmark = [
    pytest.mark.mount,
    pytest.mark.once,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else"),
]

_NOBODY = 65534
# A private mount namespace with /dev/fuse for everybody, where nobody may read what the tests run on.
_PRIVATE = """\
set -eu
top=$1; shift
mknod -m 666 "$top/fuse" c 10 229
mount --bind "$top/fuse" /dev/fuse
while [ "$1" != -- ]; do  # pairs: a closed directory, and what lies in it that must be found
    mkdir "$top/kept"; mount --rbind "$2" "$top/kept"
    mount -t tmpfs -o mode=755 tmpfs "$1"
    mkdir -p "$2"; mount --rbind "$top/kept" "$2"; umount -l "$top/kept"; rmdir "$top/kept"
    shift 2
done
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all "$@"
"""


def _closed_parents(path: str) -> Iterator[str]:
    """Pairs for _PRIVATE: the topmost directory above `path` that others may not enter."""
    for parent in reversed(Path(path).resolve().parents):
        if not parent.stat().st_mode & 1:
            yield from (str(parent), str(Path(path).resolve()))
            return


@pytest.fixture
def nobodys() -> Iterator[Path]:
    """A directory that belongs to a user with no privilege, where that user can reach it."""
    place = Path(tempfile.mkdtemp(prefix="fuse-ckpt-test-", dir="/tmp"))
    (place / "own").mkdir()
    (place / "mnt").mkdir()
    place.chmod(0o755)
    for name in ("own", "mnt"):
        os.chown(place / name, _NOBODY, _NOBODY)
    yield place
    shutil.rmtree(place)


def _as_nobody(place: Path, desk: Desk, script: str) -> subprocess.CompletedProcess[str]:
    closed = list(_closed_parents(sys.base_prefix))
    line = [*APART, "sh", "-c", _PRIVATE, "sh", str(place), *closed, "--", "bash", "-euc", script]
    tool = place / "own" / "fuse-ckpt"
    tool.write_text(f'#!/bin/sh\nexec {" ".join(PROGRAM)} "$@"\n')
    tool.chmod(0o755)
    environment = desk.environment(
        HOME=str(place / "own"), FUSE_CKPT_STORE=str(place / "own" / "store"), M=str(place / "mnt"),
        PATH=f"{tool.parent}:{os.environ['PATH']}",
    ) | {DATA_PATH: "auto"}  # fmt: skip
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=place / "own"
    )


def test_a_user_without_privilege_mounts_through_fusermount3(nobodys: Path, desk: Desk) -> None:
    done = _as_nobody(
        nobodys,
        desk,
        """
        fuse-ckpt mount job "$M" >&2
        echo weights > "$M/m.bin"
        until fuse-ckpt training checkpoints job --json | grep -q m.bin; do sleep 0.1; done
        cat "$M/.checkpoints/by-name/m.bin@1/m.bin"
        fuse-ckpt umount "$M"
        grep -c " $M " /proc/self/mountinfo || true
        fuse-ckpt training checkpoints job --json
        """,
    )
    assert done.returncode == 0, done.stderr
    content, mounts, listed = done.stdout.split("\n", 2)
    assert (content, mounts) == ("weights", "0")
    assert [one["name"] for one in json.loads(listed)] == ["m.bin"]
    log = (nobodys / "own" / "store" / "jobs" / "job" / "daemon.log").read_text()
    assert not re.search("WARNING|ERROR|Traceback", log), log


def test_where_nothing_may_be_bound_the_input_variable_names_the_read_view(nobodys: Path, desk: Desk) -> None:
    done = _as_nobody(
        nobodys,
        desk,
        f"""
        mkdir given
        export {INPUT}=$PWD/given {OUTPUT}=$M
        fuse-ckpt training run first -- sh -c 'echo weights > "${OUTPUT}/m.bin"'
        fuse-ckpt training run second -C first/m.bin -- sh -c 'echo "${INPUT}"; cat "${INPUT}/m.bin"; ls given'
        grep -c " $M " /proc/self/mountinfo || true
        """,
    )
    assert done.returncode == 0, done.stderr
    given, content, mounts = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(nobodys))}/mnt/\.checkpoints/by-id/[0-9a-f-]{{36}}", given)
    assert (content, mounts) == ("weights", "0")
