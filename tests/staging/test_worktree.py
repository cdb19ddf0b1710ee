"""What a look at the working tree finds."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_ckpt.model import Kind, Shape, Unit
from fuse_ckpt.staging.units import ROOT_UNIT, UnitRules
from fuse_ckpt.staging.worktree import LARGEST_COMPANION, Found, Scan, WorkTree
from tests.staging.trainer import key_of


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    directory.mkdir()
    return directory


@pytest.fixture
def tree(work: Path) -> Iterator[WorkTree]:
    fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    yield WorkTree(fd, UnitRules())
    os.close(fd)


def put(work: Path, *paths: str) -> None:
    for path in paths:
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_bytes(b"x")


def paths_of(scan: Scan) -> list[str]:
    return [found.path for found in scan.members]


def found_at(tree: WorkTree, path: str) -> Found:
    found = tree.look(path)
    assert found is not None
    return found


def test_a_directory_unit_is_everything_below_it(tree: WorkTree, work: Path) -> None:
    put(work, "checkpoint-1/a", "checkpoint-1/deep/er/b", "checkpoint-1/train.log", "checkpoint-2/c", "other.pt")
    (work / "checkpoint-1" / "empty").mkdir()
    scan = tree.scan(Unit("checkpoint-1", Shape.DIRECTORY))
    assert paths_of(scan) == [
        "checkpoint-1/a", "checkpoint-1/deep", "checkpoint-1/deep/er", "checkpoint-1/deep/er/b",
        "checkpoint-1/empty", "checkpoint-1/train.log",
    ]  # fmt: skip
    assert [found.path for found in scan.files] == [
        "checkpoint-1/a", "checkpoint-1/deep/er/b", "checkpoint-1/train.log",
    ]  # fmt: skip


def test_temporary_names_are_told_apart(tree: WorkTree, work: Path) -> None:
    put(work, "checkpoint-1/a", "checkpoint-1/b.tmp")
    scan = tree.scan(Unit("checkpoint-1", Shape.DIRECTORY))
    assert (paths_of(scan), scan.temporary) == (["checkpoint-1/a"], ("checkpoint-1/b.tmp",))


def test_a_log_that_is_being_written_is_left_out_and_nothing_else(tree: WorkTree, work: Path) -> None:
    put(work, "checkpoint-1/a", "checkpoint-1/train.log")
    keys = frozenset(key_of(work / "checkpoint-1" / name) for name in ("a", "train.log"))
    assert paths_of(tree.scan(Unit("checkpoint-1", Shape.DIRECTORY), keys)) == ["checkpoint-1/a"]


def test_the_root_unit_is_the_hugging_face_set_alone(tree: WorkTree, work: Path) -> None:
    put(work, "config.json", "model.safetensors", "other.pt", "train.log", "checkpoint-1/config.json")
    assert paths_of(tree.scan(ROOT_UNIT)) == ["config.json", "model.safetensors"]


def test_readme_beside_the_hugging_face_set_belongs_to_it(tree: WorkTree, work: Path) -> None:
    put(work, "config.json", "README.md")
    assert paths_of(tree.scan(ROOT_UNIT)) == ["README.md", "config.json"]


def test_ranks_and_shards_are_one_flat_unit(tree: WorkTree, work: Path) -> None:
    put(work, "ep1-rank0.pt", "ep1-rank1.pt", "ep2-rank0.pt")
    assert paths_of(tree.scan(Unit("ep1-rank0.pt", Shape.FLAT))) == ["ep1-rank0.pt", "ep1-rank1.pt"]


def test_companions_are_those_beside_the_unit(tree: WorkTree, work: Path) -> None:
    put(work, "global_step1/a", "latest", "zero_to_fp32.py", "other.pt", "sub/latest")
    (work / "last").symlink_to("global_step1")
    (work / "last_checkpoint").write_bytes(b"x" * (LARGEST_COMPANION + 1))
    scan = tree.scan(Unit("global_step1", Shape.DIRECTORY))
    assert [(found.path, found.target) for found in scan.companions] == [
        ("last", "global_step1"), ("latest", ""), ("zero_to_fp32.py", ""),
    ]  # fmt: skip


def test_a_unit_that_is_gone_is_empty(tree: WorkTree, work: Path) -> None:
    for unit in (Unit("gone", Shape.DIRECTORY), Unit("gone.pt", Shape.FLAT), Unit("a/gone.pt", Shape.FLAT), ROOT_UNIT):
        assert tree.scan(unit) == Scan((), (), ())


def test_every_unit_of_the_tree_is_found_once(tree: WorkTree, work: Path) -> None:
    put(work, "checkpoint-1/a", "checkpoint-1/b", "x.pt", "config.json", "runs/e", "checkpoints/step_1/a", "y.tmp")
    units = list(tree.units())
    assert {unit.name for unit in units} == {"checkpoint-1", "x.pt", "", "checkpoints/step_1"}
    assert len(units) == 4
    assert [unit.name for unit in tree.units_below("checkpoints")] == ["checkpoints/step_1"]


def test_what_no_checkpoint_can_hold_is_not_seen(tree: WorkTree, work: Path) -> None:
    os.mkfifo(work / "fifo")
    assert tree.look("fifo") is None
    assert tree.look("gone") is None
    assert tree.look("gone/deeper") is None


def test_a_symlink_is_never_followed(tree: WorkTree, work: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (work / "out").symlink_to(tmp_path / "secret")
    found = found_at(tree, "out")
    assert (found.kind, found.target) == (Kind.SYMLINK, str(tmp_path / "secret"))
    assert tree.pointer("out") == ""
    with pytest.raises(OSError, match="symbolic"):
        tree.is_written(found)


def test_names_that_are_no_utf8_are_found(tree: WorkTree, work: Path) -> None:
    (work / "checkpoint-1").mkdir()
    os.close(os.open(os.fsencode(work) + b"/checkpoint-1/\xff", os.O_CREAT))
    (found,) = tree.scan(Unit("checkpoint-1", Shape.DIRECTORY)).files
    assert os.fsencode(found.path) == b"checkpoint-1/\xff"


def test_an_open_writable_descriptor_is_seen(tree: WorkTree, work: Path) -> None:
    put(work, "a")
    fd = os.open(work / "a", os.O_WRONLY)
    assert tree.is_written(found_at(tree, "a"))
    os.close(fd)
    with open(work / "a", "rb"):
        assert not tree.is_written(found_at(tree, "a"))


def test_a_shared_mapping_is_seen_after_its_descriptor_was_closed(tree: WorkTree, work: Path) -> None:
    put(work, "a")
    with open(work / "a", "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 1)
    assert tree.is_written(found_at(tree, "a"))
    mapping.close()
    assert not tree.is_written(found_at(tree, "a"))


def test_inodes_with_more_than_one_name_are_those_that_may_be_blobs(tree: WorkTree, work: Path) -> None:
    put(work, "d/a", "b")
    os.link(work / "d" / "a", work / "c")
    assert tree.linked_inodes() == {key_of(work / "c")}
