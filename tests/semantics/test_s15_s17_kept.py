"""What is kept: through a kill of the daemon, once, and without ever holding training up."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import MountJob
from tests.mount.harness import Mount, wait_until
from tests.semantics.parity import put

pytestmark = pytest.mark.mount

# Saves safetensors files under ever new names until the mount dies; says name and digest once close() has returned.
SAVING = """
import hashlib, json, os, sys
directory, tag = sys.argv[1:]
payload = 200_000
header = json.dumps({"w": {"dtype": "U8", "shape": [payload], "data_offsets": [0, payload]}}).encode()
for number in range(100_000):
    data = len(header).to_bytes(8, "little") + header + os.urandom(payload)
    name = f"{tag}-{number}.safetensors"
    with open(f"{directory}/{name}", "wb", 0) as f:
        for start in range(0, len(data), 50_000):
            f.write(data[start : start + 50_000])
    print(name, hashlib.sha256(data).hexdigest(), flush=True)
"""


def save_until_killed(mounted: Mount, tag: str, saves: int) -> dict[str, str]:
    """Two programs save; after `saves` of each the daemon is killed. Returns digest by name of what was closed."""
    programs = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", SAVING, mounted.path, f"{tag}{number}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    closed: dict[str, str] = {}
    for program in programs:
        assert program.stdout is not None
        for _ in range(saves):
            closed.update([program.stdout.readline().split()])  # type: ignore[list-item]
    mounted.kill(clear=False)
    for program in programs:
        rest, complaint = program.communicate(timeout=30)
        assert "not connected" in complaint or "connection abort" in complaint
        closed.update(line.split() for line in rest.splitlines())  # type: ignore[misc]
    return closed


def digests_by_name(mounted: Mount) -> dict[str, str]:
    """SHA-256 by name of every available checkpoint, from the store's blobs: needs no mount."""
    found = {}
    for checkpoint in mounted.committed():
        digests = json.loads((mounted.store / "manifests" / f"{checkpoint.id}.json").read_text())["entries"]
        for entry in digests:
            blob = mounted.store / "blobs" / entry["digest"][:2] / entry["digest"]
            found[checkpoint.id + checkpoint.name] = hashlib.sha256(blob.read_bytes()).hexdigest()
    return found


def _are_available(mounted: Mount, names: frozenset[str]) -> bool:
    return names <= {found.name for found in mounted.committed()}


def test_a_kill_of_the_daemon_while_saves_run_loses_nothing_that_was_closed(mounted: Mount) -> None:
    """S15: close() returned: the bytes survive a kill of the program or the daemon, and the next mount commits or
    sets aside what was pending."""
    mounted.allow_log("is not whole")  # a kill between two saves tears none
    closed: dict[str, str] = {}
    for turn, saves in enumerate((3, 11, 6)):
        closed |= save_until_killed(mounted, f"turn{turn}-", saves)
        before = digests_by_name(mounted)
        mounted.mount()
        wait_until("all that was closed", partial(_are_available, mounted, frozenset(closed)))
        after = digests_by_name(mounted)
        assert before.items() <= after.items()
    mounted.umount()
    named = {key[36:]: digest for key, digest in digests_by_name(mounted).items()}
    assert named == closed | {name: named[name] for name in named.keys() - closed.keys()}
    assert len(mounted.committed()) == len(named), "a save that was made once is listed once"
    listed = {one["name"]: one["status"] for one in mounted.checkpoints(all=True)}
    in_the_tree = set(os.listdir(mounted.store / "jobs" / "job" / "work"))
    torn = in_the_tree - named.keys()
    assert {listed[name] for name in torn} <= {"failed"}
    assert all(found.failure for found in mounted.committed(status="failed"))


def test_what_was_pending_at_a_kill_is_committed_at_the_next_mount(mount_job: MountJob) -> None:
    """S15: the next mount commits or sets aside what was pending."""
    mounted = mount_job("job", "--quiet-period", "600")
    (mounted.path / "step_1").mkdir()
    put(mounted.path / "step_1" / "model.bin", b"not committed for 10 min")
    mounted.kill()
    assert mounted.committed() == []
    mounted.mount()
    (found,) = mounted.wait_for("step_1")
    assert (mounted.by_id(found) / "model.bin").read_bytes() == b"not committed for 10 min"


def test_equal_files_are_kept_once(mount_job: MountJob) -> None:
    """S16: In the store equal files are kept once, whatever their names, jobs and times; an unchanged re-save costs
    no space beyond its working copy."""
    one, other = mount_job("one"), mount_job("other")
    data = os.urandom(1 << 20)
    for mounted, name in ((one, "a.bin"), (one, "b.bin"), (other, "c.bin")):
        put(mounted.path / name, data)
        mounted.wait_for(name)
    (blob,) = (path for path in (one.store / "blobs").rglob("*") if path.is_file())
    assert blob.stat().st_nlink == 2, "commit links the first one's inode: no byte is copied"
    put(one.path / "a.bin", data)
    one.wait_for("a.bin", 2)
    assert [path for path in (one.store / "blobs").rglob("*") if path.is_file()] == [blob]


FAILING = """
import errno, os, sys
from fuse_ckpt.cli import main
from fuse_ckpt.store import Store

adopt = Store.adopt_all
def broken(self, sources):
    if os.path.exists(os.environ["FULL_IF"]):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return adopt(self, sources)
Store.adopt_all = broken
sys.exit(main(sys.argv[1:]))
"""


def test_a_commit_that_fails_is_listed_and_training_goes_on(
    mount_job: MountJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S17: Training never dies and never waits because a commit is slow or fails: the failure is listed, logged
    once."""
    full = put(tmp_path / "full")
    monkeypatch.setenv("FULL_IF", str(full))
    mounted = mount_job("job", ready=False).mount(program=(sys.executable, "-c", FAILING))
    put(mounted.path / "first.bin")
    mounted.expect_log("cannot commit 'first.bin'.*No space left")
    wait_until("it failed", lambda: mounted.daemon is not None and "cannot commit" in mounted.daemon.log)
    full.unlink()
    put(mounted.path / "second.bin")
    mounted.wait_for("second.bin")
    assert mounted.daemon is not None
    assert mounted.daemon.log.count("cannot commit") == 1
    listed = {one["name"]: one["status"] for one in mounted.checkpoints(all=True)}
    assert listed == {"first.bin": "pending", "second.bin": "available"}
    (mounted.path / "first.bin").unlink()
    mounted.umount()
    mounted.mount()
    (first,) = mounted.wait_for("first.bin")
    assert (mounted.by_id(first) / "first.bin").read_bytes() == b"0123456789"


SLOW = """
import os, sys, time
from fuse_ckpt.cli import main
from fuse_ckpt.store import Store

adopt = Store.adopt_all
def slow(self, sources):
    open(os.environ["SLOW_UNTIL"] + ".reached", "w").close()
    while not os.path.exists(os.environ["SLOW_UNTIL"]):
        time.sleep(0.01)
    return adopt(self, sources)
Store.adopt_all = slow
sys.exit(main(sys.argv[1:]))
"""


def test_training_does_not_wait_for_a_commit(
    mount_job: MountJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S17: Training never dies and never waits because a commit is slow."""
    gate = tmp_path / "gate"
    monkeypatch.setenv("SLOW_UNTIL", str(gate))
    mounted = mount_job("job", ready=False).mount(program=(sys.executable, "-c", SLOW))
    put(mounted.path / "latest.bin", b"0")
    wait_until("the commit runs", (tmp_path / "gate.reached").exists)
    for number in range(1, 6):
        put(mounted.path / "latest.bin", b"%d" % number)
        assert (mounted.path / "latest.bin").read_bytes() == b"%d" % number
    assert mounted.committed() == []
    put(gate)
    found = mounted.wait_for("latest.bin", 6)
    assert [(mounted.by_id(one) / "latest.bin").read_bytes() for one in found] == [b"%d" % n for n in range(6)]
