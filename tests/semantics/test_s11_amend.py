"""A file that comes late, and who keeps it from changing a checkpoint."""

from __future__ import annotations

import json
import os

import pytest
import torch

from fuse_ckpt.store import Store
from tests.mount.harness import _ONE_AT_A_TIME, Mount, wait_until
from tests.semantics.parity import opened, put
from tests.semantics.test_s07_s11_units import files_of, save
from tests.semantics.test_s09_when import in_another_process, mark

pytestmark = pytest.mark.mount


def saved(mounted: Mount) -> str:
    """A checkpoint that is committed: its id."""
    save(mounted.path / "checkpoint-1" / "model.pt")
    mark(mounted.path / "checkpoint-1")
    return mounted.wait_for("checkpoint-1")[0].id


def test_a_slow_process_s_file_is_added_to_the_same_id(mounted: Mount) -> None:
    """S11: a commit is provisional for 30 s: *new* files in that time (a slow rank's rng_state) amend the same id."""
    first = saved(mounted)
    view = mounted.by_id(first)
    before = view.with_suffix(".json").read_bytes()
    held = os.open(view, os.O_RDONLY | os.O_DIRECTORY)
    try:
        in_another_process(mounted.path / "checkpoint-1" / "rng_state_1.bin")
        wait_until("it is amended", lambda: mounted.committed("checkpoint-1")[0].revision == 2)
        (after,) = mounted.committed("checkpoint-1")
        assert (after.id, after.ordinal, after.files) == (first, 1, 3)
        assert files_of(mounted, "checkpoint-1") == ["model.pt", "rng_state_1.bin", "trainer_state.json"]
        assert (view / "rng_state_1.bin").read_bytes() == b"data"
        assert sorted(os.listdir(held)) == ["model.pt", "trainer_state.json"], "a directory in use keeps what it had"
    finally:
        os.close(held)
    said = json.loads(view.with_suffix(".json").read_bytes())
    assert (said["checkpoint"]["revision"], len(said["entries"])) == (2, 3)
    assert len(json.loads(before)["entries"]) == 2
    assert torch.load(view / "model.pt")["step"] == 1


@pytest.mark.parametrize("use", ["lease", "fetch"])
def test_what_somebody_has_used_is_never_changed(mounted: Mount, use: str) -> None:
    """S11: unless it has been leased, fetched, exported or replicated meanwhile."""
    first = saved(mounted)
    if use == "fetch":
        said = mounted.cli("checkpoint", "fetch", first, "--destination", str(mounted.path.parent / "fetched"))
        assert said.returncode == 0, said.stderr
    else:
        with _ONE_AT_A_TIME, Store.open(mounted.store) as store:
            store.lease(first).close()
    put(mounted.path / "checkpoint-1" / "rng_state_1.bin")
    found = mounted.wait_for("checkpoint-1", 2)
    assert [(one.ordinal, one.revision, one.files) for one in found] == [(1, 1, 2), (2, 1, 3)]
    assert sorted(os.listdir(mounted.by_id(first))) == ["model.pt", "trainer_state.json"]


def test_a_changed_member_opens_a_new_version_also_in_that_time(mounted: Mount) -> None:
    """S11: A changed, truncated or replaced member, or anything later, opens a new checkpoint under the same NAME."""
    first = saved(mounted)
    put(mounted.path / "checkpoint-1" / "rng_state_1.bin")
    with opened(mounted.path / "checkpoint-1" / "trainer_state.json", os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"\n")
    found = mounted.wait_for("checkpoint-1", 2)
    assert [(one.ordinal, one.revision, one.files) for one in found] == [(1, 1, 2), (2, 1, 3)]
    assert mounted.by_id(first).is_dir()


def test_a_missing_shard_makes_a_failed_one_available(mounted: Mount) -> None:
    """S12: what is missing and comes within that time makes it whole, under the same id."""
    d = mounted.path / "checkpoint-1"
    d.mkdir()
    put(d / "model.safetensors.index.json", json.dumps({"weight_map": {"a": "m-1.bin", "b": "m-2.bin"}}).encode())
    put(d / "m-1.bin")
    mounted.expect_log("is not whole")
    said = mounted.cli("checkpoint", "commit", "job")
    assert (said.returncode, "names m-2.bin, which is missing" in said.stdout) == (1, True)
    (failed,) = mounted.committed("checkpoint-1", "failed")
    put(d / "m-2.bin")
    (found,) = mounted.wait_for("checkpoint-1")
    assert (found.id, found.revision, found.failure) == (failed.id, 2, None)


def test_a_late_file_at_unmount_is_added_too(mounted: Mount) -> None:
    """S11, S9: at unmount."""
    first = saved(mounted)
    put(mounted.path / "checkpoint-1" / "README.md", b"# a card")
    mounted.umount()
    (after,) = mounted.committed("checkpoint-1")
    assert (after.id, after.revision, after.files) == (first, 2, 3)
    mounted.mount()
    assert files_of(mounted, "checkpoint-1") == ["README.md", "model.pt", "trainer_state.json"]


def test_a_late_file_that_only_the_next_mount_sees_is_added_too(mounted: Mount) -> None:
    """S11, S5: the daemon is killed before the file is committed."""
    first = saved(mounted)
    put(mounted.path / "checkpoint-1" / "rng_state_1.bin")
    mounted.kill()
    mounted.mount()
    wait_until("it is amended", lambda: mounted.committed("checkpoint-1")[0].revision == 2)
    assert [one.id for one in mounted.committed("checkpoint-1")] == [first]


def test_a_person_overrules_failed(mounted: Mount) -> None:
    """S12: `checkpoint promote` overrules."""
    d = mounted.path / "checkpoint-1"
    save(d / "model.pt")
    put(d / "notes.json", b'{"a": ')
    mounted.expect_log("is not whole")
    assert mounted.cli("checkpoint", "commit", "job").returncode == 1
    (failed,) = mounted.committed("checkpoint-1", "failed")
    assert not os.path.lexists(mounted.view / "latest")
    said = mounted.cli("checkpoint", "promote", "job/checkpoint-1")
    assert (said.returncode, said.stdout) == (0, f"Promoted {failed.id} (job/checkpoint-1@1)\n"), said.stderr
    assert os.readlink(mounted.view / "latest") == f"by-id/{failed.id}"
    assert torch.load(mounted.view / "latest" / "model.pt")["step"] == 1
    (listed,) = mounted.checkpoints()
    assert listed["status"] == "available"
