"""What becomes a checkpoint, when, and under which name and id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import MountJob
from tests.mount.harness import Mount
from tests.semantics.parity import put

NEVER = ("--quiet-period", "600")  # seconds: nothing is due by itself while a test runs

pytestmark = pytest.mark.mount


def save(path: Path, step: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    optimizer: dict[str, Any] = {"state": {}, "param_groups": []}
    torch.save({"model": {"w": torch.full((100,), float(step))}, "optimizer": optimizer, "step": step}, path)
    return path


def files_of(mounted: Mount, name: str) -> list[str]:
    (found,) = mounted.committed(name)
    top = mounted.by_id(found)
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())


def test_the_final_path_alone_decides_the_unit(mounted: Mount) -> None:
    """S7: The unit that a file belongs to follows from its final path alone (renames followed, by inode; temporary
    names never count)."""
    d = mounted.path
    for path in (
        "config.json", "model.safetensors.index.json", "checkpoint-5/trainer_state.json", "eval/results.json",
        "zero.json", "runs/x/hparams.json", "latest", "checkpoints/tagged/meta.json", "notes.txt", "train.log",
        "checkpoints/epoch=1.json", "checkpoint-5/deep/er/extra.json", "best/notes.txt",
    ):  # fmt: skip
        (d / path).parent.mkdir(parents=True, exist_ok=True)
        put(d / path, json.dumps({"weight_map": {}, "log_history": []}).encode())
    save(d / "best" / "model.pt")
    for rank in (0, 1):
        save(d / f"shard_rank{rank}.pt")
    os.rename(save(d / "whatever.tmp"), d / "final.pt")
    mounted.umount()
    mounted.mount()
    assert {found.name for found in mounted.committed()} == {
        "", "checkpoint-5", "eval", "zero.json", "checkpoints/tagged", "checkpoints/epoch=1.json", "best",
        "shard_rank0.pt", "final.pt",
    }  # fmt: skip
    assert files_of(mounted, "") == ["config.json", "model.safetensors.index.json"]
    assert files_of(mounted, "checkpoint-5") == ["deep/er/extra.json", "trainer_state.json"]
    assert files_of(mounted, "best") == ["model.pt", "notes.txt"]
    assert files_of(mounted, "shard_rank0.pt") == ["shard_rank0.pt", "shard_rank1.pt"]


def test_unit_overrides_the_rules(mount_job: MountJob) -> None:
    """S7: --unit GLOB overrides."""
    mounted = mount_job("job", "--unit", "exp/run*")
    save(mounted.path / "exp" / "run1" / "a.pt")
    save(mounted.path / "exp" / "run2" / "b.pt")
    mounted.umount()
    assert {found.name for found in mounted.committed()} == {"exp/run1", "exp/run2"}


def test_renaming_an_uncommitted_unit_only_gives_it_its_new_name(mounted: Mount) -> None:
    """S7: Renaming an uncommitted unit only gives it its new NAME; renaming a committed one makes a new checkpoint
    under the new NAME, of the same blobs."""
    d = mounted.path
    save(d / "checkpoint-1" / "model.pt")
    os.rename(d / "checkpoint-1", d / "checkpoint-2")
    mounted.wait_for("checkpoint-2")
    assert mounted.committed("checkpoint-1") == []
    os.rename(d / "checkpoint-2", d / "checkpoint-3")
    mounted.wait_for("checkpoint-3")
    blobs = [path for path in (mounted.store / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 1
    assert len(mounted.committed("checkpoint-2")) == 1


def test_a_unit_with_an_open_file_or_a_temporary_name_waits(mount_job: MountJob) -> None:
    """S8: Complete means: no handle open for writing in it, no temporary name in it, and whole by content."""
    mounted = mount_job("job", "--quiet-period", "0.1")
    d = mounted.path / "step_1"
    d.mkdir()
    with open(d / "more.bin", "wb") as f:
        f.write(b"half")
        save(d / "model.pt")
        save(mounted.path / "beside.pt")
        mounted.wait_for("beside.pt")
        assert mounted.committed("step_1") == []
    (mounted.path / "step_2").mkdir()
    put(mounted.path / "step_2" / "x.tmp")
    save(mounted.path / "step_2" / "model.pt")
    mounted.wait_for("step_1")
    assert mounted.committed("step_2") == []
    os.rename(mounted.path / "step_2" / "x.tmp", mounted.path / "step_2" / "x.bin")
    mounted.wait_for("step_2")
    assert files_of(mounted, "step_2") == ["model.pt", "x.bin"]


def test_a_directory_renamed_into_place_is_committed_at_once(mount_job: MountJob) -> None:
    """S9: Committed when: a directory is renamed into place: at once."""
    mounted = mount_job("job", *NEVER)
    save(mounted.path / "tmp-checkpoint-1" / "model.pt")
    os.rename(mounted.path / "tmp-checkpoint-1", mounted.path / "checkpoint-1")
    mounted.wait_for("checkpoint-1")


def test_all_its_writers_have_exited(mount_job: MountJob) -> None:
    """S9: and at once when all its writers have exited."""
    mounted = mount_job("job", *NEVER)
    code = "import sys, pathlib; d = pathlib.Path(sys.argv[1]); d.mkdir(); (d / 'a.bin').write_bytes(b'1')"
    subprocess.run([sys.executable, "-S", "-c", code, mounted.path / "step_1"], check=True)
    mounted.wait_for("step_1")


def test_until_then_it_is_listed_as_pending(mount_job: MountJob) -> None:
    """S9: From its first close until then it is listed as `pending` (with `--all`)."""
    mounted = mount_job("job", *NEVER)
    save(mounted.path / "step_1" / "model.pt")
    (listed,) = mounted.checkpoints(all=True)
    assert (listed["name"], listed["status"]) == ("step_1", "pending")
    assert mounted.checkpoints() == []
    mounted.umount()
    (listed,) = mounted.checkpoints(all=True)
    assert (listed["name"], listed["status"]) == ("step_1", "available")


def test_a_family_s_marker_is_followed_by_a_second_of_quiet(mount_job: MountJob) -> None:
    """S9: a family's marker is the newest member: after 1 s of quiet with one writing process."""
    mounted = mount_job("job", *NEVER)
    d = mounted.path / "checkpoint-7"
    save(d / "optimizer.pt")
    put(d / "trainer_state.json", json.dumps({"global_step": 7, "log_history": [{"step": 7, "loss": 0.5}]}).encode())
    (found,) = mounted.wait_for("checkpoint-7")
    assert (found.metadata.step, found.metadata.train_loss) == (7, 0.5)


def remove(d: Path) -> None:
    shutil.rmtree(d / "step_1")
    (d / "flat.pt").unlink()


def empty(d: Path) -> None:
    os.truncate(d / "step_1" / "model.pt", 0)
    (d / "flat.pt").write_bytes(b"")


def rename_over(d: Path) -> None:
    os.rename(save(d / "x.tmp", 44), d / "flat.pt")
    os.rename(d / "step_1", d / "gone.tmp")
    shutil.rmtree(d / "gone.tmp")


@pytest.mark.parametrize("destroy", [remove, rename_over, empty], ids=lambda destroy: destroy.__name__)
def test_what_is_destroyed_right_after_its_close_is_kept(mounted: Mount, destroy: Any) -> None:
    """S10: Before anything destroys it: an unlink, rmtree, truncation, or a rename over it, of a complete,
    uncommitted unit seals it first. A trainer deleted its newest checkpoint 3 ms after finishing it."""
    save(mounted.path / "flat.pt", 42)
    save(mounted.path / "step_1" / "model.pt", 43)
    put(mounted.path / "step_1" / "trainer_state.json", b'{"log_history": []}')
    destroy(mounted.path)
    if destroy is empty:
        mounted.expect_log("is not whole")  # what is left of it
    flat, step = mounted.wait_for("flat.pt")[0], mounted.wait_for("step_1")[0]
    assert torch.load(mounted.by_id(flat) / "flat.pt")["step"] == 42
    assert torch.load(mounted.by_id(step) / "model.pt")["step"] == 43


def test_a_changed_member_is_a_new_version_under_the_same_name(mounted: Mount) -> None:
    """S11: A changed, truncated or replaced member, or anything later, opens a new checkpoint under the same NAME."""
    for version in (1, 2):
        save(mounted.path / "checkpoint-1" / "model.pt", version)
        put(mounted.path / "checkpoint-1" / "trainer_state.json", b'{"log_history": []}')
        mounted.wait_for("checkpoint-1", version)
    found = mounted.committed("checkpoint-1")
    assert [(one.ordinal, torch.load(mounted.by_id(one) / "model.pt")["step"]) for one in found] == [(1, 1), (2, 2)]
    assert sorted(os.listdir(mounted.by_id(found[1]))) == ["model.pt", "trainer_state.json"]
