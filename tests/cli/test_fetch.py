from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fuse_ckpt.model import Shape


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def test_fetch_writes_below_the_names_last_part(program: Any, shelf: Any, here: Path) -> None:
    shelf.put("runs/checkpoint-5", {"a/b.bin": b"abc"}, shape=Shape.DIRECTORY)
    result = program("checkpoint", "fetch", "digits:latest")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"Fetched 1 file (3 bytes) into {here}/checkpoint-5\n"
    assert (here / "checkpoint-5/a/b.bin").read_bytes() == b"abc"


def test_fetch_of_the_root_checkpoint_writes_below_its_short_id(program: Any, shelf: Any, here: Path) -> None:
    found = shelf.put("", {"model.safetensors": b"abc", "config.json": b"{}"}, shape=Shape.ROOT)
    assert program("checkpoint", "pull", found.id, "--include", "*.json").code == 0
    assert [path.name for path in (here / found.id[-8:]).iterdir()] == ["config.json"]


def test_fetch_into_a_directory_in_use_is_a_usage_error_unless_forced(program: Any, shelf: Any, here: Path) -> None:
    shelf.put(files={"ckpt.pt": b"new"})
    (here / "out").mkdir()
    (here / "out/ckpt.pt").write_bytes(b"old")
    result = program("checkpoint", "fetch", "digits/ckpt.pt", "--destination", "out")
    assert result.code == 2
    assert "--force" in result.err
    assert (here / "out/ckpt.pt").read_bytes() == b"old"
    assert program("checkpoint", "fetch", "digits/ckpt.pt", "--destination", "out", "--force").code == 0
    assert (here / "out/ckpt.pt").read_bytes() == b"new"


def test_fetch_waits_for_the_disk_where_that_is_asked_for(
    program: Any, shelf: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(files={"ckpt.pt": b"12345678"})
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    for name, options in (("a", []), ("b", ["--sync"])):
        assert program("checkpoint", "fetch", "digits/ckpt.pt", "--destination", name, *options).code == 0
    files = [Path(path) for path in synced if path.endswith("ckpt.pt")]
    assert [path.parent.name.partition(".")[0] for path in files] == ["b"]


def test_fetch_of_damaged_bytes_exits_with_4_and_leaves_nothing(program: Any, shelf: Any, here: Path) -> None:
    found = shelf.put(files={"ckpt.pt": b"12345678"})
    blob = shelf.store.blob_path(shelf.store.manifest(found.id).entries[0].digest)
    blob.chmod(0o600)
    blob.write_bytes(b"1234x678")
    result = program("checkpoint", "fetch", found.id)
    assert result.code == 4
    assert "ckpt.pt" in result.err
    assert result.err.count("\n") == 1
    assert list(here.iterdir()) == []


def test_fetch_of_a_failed_checkpoint_says_so_and_does_it(program: Any, shelf: Any, here: Path) -> None:
    found = shelf.put(failure="its writer was killed")
    result = program("checkpoint", "fetch", found.id)
    assert result.code == 0
    assert "its writer was killed" in result.err
    assert (here / "ckpt.pt/ckpt.pt").exists()
