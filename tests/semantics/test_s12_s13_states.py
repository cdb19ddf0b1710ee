"""Which checkpoints can be trusted, and in which order they come."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import MountJob
from tests.mount.harness import Mount, wait_until
from tests.semantics.parity import put

pytestmark = pytest.mark.mount


def save(path: Path, step: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    optimizer: dict[str, Any] = {"state": {}, "param_groups": []}
    torch.save({"model": {"w": torch.full((100,), float(step))}, "optimizer": optimizer, "step": step}, path)
    return path


def tear_torch(path: Path) -> None:
    save(path)
    os.truncate(path, path.stat().st_size - 30)


def tear_safetensors(path: Path) -> None:
    save_file({"w": torch.zeros(1000)}, path)
    os.truncate(path, path.stat().st_size - 30)


def tear_json(path: Path) -> None:
    save(path.parent / "model.pt")
    put(path, b'{"log_history": [{"step": 1, "lo')


TEARS = [
    ("torn.pt", tear_torch),
    ("torn.safetensors", tear_safetensors),
    ("checkpoint-9/trainer_state.json", tear_json),
]


@pytest.mark.parametrize(("name", "tear"), TEARS, ids=[name for name, _ in TEARS])
def test_what_is_not_whole_is_failed_and_never_latest(mount_job: MountJob, name: str, tear: Any) -> None:
    """S12: Never: a unit that is not whole is `failed`, with the reason; it is kept for salvage, is never `latest`,
    and `-C` refuses it without `--force`."""
    mounted = mount_job("job", ready=False)
    beside = mounted.path.parent / "beside" / name
    beside.parent.mkdir(parents=True)
    tear(beside)  # whole, then torn, before anybody can see it whole
    mounted.mount()
    good = save(mounted.path / "good.pt", 1)
    mounted.wait_for("good.pt")
    unit = name.partition("/")[0]
    shutil.copytree(beside.parent, mounted.path / unit) if "/" in name else shutil.copy(beside, mounted.path / name)
    mounted.expect_log("is not whole")
    mounted.umount()
    (failed,) = mounted.committed(unit, "failed")
    assert failed.failure
    listed = {one["name"]: one["status"] for one in mounted.checkpoints(all=True)}
    assert listed == {"good.pt": "available", unit: "failed"}
    mounted.mount()
    assert os.readlink(mounted.view / "latest") == f"by-id/{mounted.committed('good.pt')[0].id}"
    assert (mounted.by_id(failed) / Path(name).name).read_bytes() == beside.read_bytes()
    assert failed.id not in os.listdir(mounted.view / "by-id")
    refused = mounted.cli("training", "run", "next", "-C", failed.id, "--", "true")
    assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
    assert good.is_file()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)", "os._exit(3)"])
def test_a_writer_that_dies_leaves_no_available_checkpoint(mounted: Mount, end: str) -> None:
    """S12: Never: a unit in which a file was closed for its writer only by the writer's death (a signal, or an exit
    with a status other than 0) is `failed`."""
    code = f"import os, sys; f = open(sys.argv[1], 'wb', 0); f.write(b'half'); {end}"
    done = subprocess.run([sys.executable, "-S", "-c", code, mounted.path / "raw.bin"], check=False)
    assert done.returncode in (-9, -15, 3)
    mounted.expect_log("raw.bin")
    (found,) = mounted.wait_for("raw.bin", status="failed")
    assert found.failure
    mounted.umount()
    assert mounted.committed() == []


def test_a_file_that_a_program_leaves_open_at_its_good_end_is_no_torn_one(mounted: Mount) -> None:
    """S12, its limit: a signal, or an exit with a status other than 0."""
    code = "import os, sys; f = open(sys.argv[1], 'wb', 0); f.write(b'whole'); os._exit(0)"
    subprocess.run([sys.executable, "-S", "-c", code, mounted.path / "raw.bin"], check=True)
    mounted.wait_for("raw.bin")


def test_a_broken_config_is_no_reason_to_fail(mounted: Mount) -> None:
    """S12, its limit: a broken config.json alone gives empty cells and a note."""
    d = mounted.path / "checkpoint-1"
    save(d / "model.pt")
    put(d / "config.json", b'{"architectures": ["Tr')
    put(d / "trainer_state.json", b'{"global_step": 3, "log_history": []}')
    (found,) = mounted.wait_for("checkpoint-1")
    assert (found.metadata.step, found.metadata.model, found.metadata.inference_ready) == (3, None, False)
    assert any("config.json" in note for note in found.metadata.notes)


def test_a_step_saved_again_over_what_a_killed_save_left_is_available(mounted: Mount) -> None:
    """S8: Nor does a temporary name that an earlier save left when it was killed, once the same step is saved again: it
    is not open, lay there before this save began, and every member is newer."""
    d = mounted.path / "checkpoint-1"
    code = (
        "import os, pathlib, signal, sys; d = pathlib.Path(sys.argv[1]); d.mkdir(); (d / 'a.bin').write_bytes(b'1');"
        "(d / '.tmpAb12Cd').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    mounted.expect_log("a temporary file is left")
    assert subprocess.run([sys.executable, "-S", "-c", code, d], check=False).returncode == -9
    (first,) = mounted.wait_for("checkpoint-1", status="failed")
    assert first.failure == "a temporary file is left in it: checkpoint-1/.tmpAb12Cd"
    before = os.stat(d / ".tmpAb12Cd").st_mtime - 60
    os.utime(d / ".tmpAb12Cd", (before, before))
    for name in ("a.bin", "b.bin"):
        save(d / name, step=2)
    put(d / "trainer_state.json", b'{"global_step": 1, "log_history": []}')
    (again,) = mounted.wait_for("checkpoint-1")
    assert again.id != first.id
    assert (d / ".tmpAb12Cd").read_bytes() == b"half"
    assert not (mounted.path / ".checkpoints" / "by-id" / again.id / ".tmpAb12Cd").exists()


def test_id_order_is_commit_order_is_listing_order(mount_job: MountJob) -> None:
    """S13: An id is minted at commit, unique over all machines and time-ordered: id order is commit order is listing
    order. The timestamp is when the checkpoint was created: its last member's close."""
    mounts = [mount_job("one"), mount_job("two")]

    def work(mounted: Mount) -> None:
        for step in range(10):
            save(mounted.path / f"{step}.pt", step)
        mounted.wait_for("9.pt")
        wait_until("all ten", lambda: len(mounted.committed()) == 10)

    threads = [threading.Thread(target=work, args=(mounted,)) for mounted in mounts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [found for mounted in mounts for found in mounted.committed()]
    assert len({found.id for found in everything}) == 20
    for mounted in mounts:
        found = mounted.committed()
        listed = [one["id"] for one in mounted.checkpoints()]
        assert listed == [one.id for one in found] == sorted(listed)
        assert [one.committed_ns for one in found] == sorted(one.committed_ns for one in found)
        for one in found:
            closed = (mounted.path / one.name).stat().st_mtime_ns
            assert closed <= one.created_ns <= one.committed_ns - 190_000_000, "its close, not its commit 0.2 s later"


def test_latest_is_the_newest_that_training_can_go_on_from(mounted: Mount) -> None:
    """S13: `latest` is the newest available checkpoint that is RESUMABLE, else the newest that holds weights: never an
    evaluation's JSON, never a root export without optimizer while a resumable one exists."""

    def latest() -> str:
        mounted.wait_for("end.json", len(ends))
        wanted = os.readlink(mounted.view / "latest").removeprefix("by-id/")
        return next(one.name for one in mounted.committed() if one.id == wanted)

    ends: list[int] = []

    def commit() -> None:
        ends.append(1)
        put(mounted.path / "end.json", json.dumps({"accuracy": len(ends)}).encode())
        mounted.wait_for("end.json", len(ends))

    put(mounted.path / "eval.json", b'{"accuracy": 1}')
    mounted.wait_for("eval.json")
    assert not os.path.lexists(mounted.view / "latest")
    torch.save({"w": torch.zeros(3)}, mounted.path / "weights.pt")
    mounted.wait_for("weights.pt")
    commit()
    assert latest() == "weights.pt"
    save(mounted.path / "resumable.pt")
    mounted.wait_for("resumable.pt")
    torch.save({"w": torch.ones(3)}, mounted.path / "weights.pt")
    mounted.wait_for("weights.pt", 2)
    commit()
    assert latest() == "resumable.pt"
