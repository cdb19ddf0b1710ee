from __future__ import annotations

import os
from pathlib import Path

import pytest

from fuse_ckpt.errors import StoreUnusable
from fuse_ckpt.store import Store, format


def test_a_new_store_is_its_owners_alone(root: Path) -> None:
    Store.open(root / "deeper").close()
    assert (root / "deeper").stat().st_mode & 0o777 == 0o700
    assert (root / "deeper" / "format").read_text() == "fuse-ckpt store 1\n"


def test_a_store_is_opened_again(root: Path) -> None:
    with Store.open(root) as store:
        store.ensure_job("job", 5)
    with Store.open(root, create=False) as store:
        assert [job.name for job in store.jobs()] == ["job"]


def test_a_missing_store_is_not_made_when_only_reading(root: Path) -> None:
    with pytest.raises(StoreUnusable, match=f"There is no store at {root}: "):
        Store.open(root, create=False)
    assert not root.exists()


def test_an_empty_directory_becomes_a_store_but_not_when_only_reading(root: Path) -> None:
    (root / "lost+found").mkdir(parents=True)
    with pytest.raises(StoreUnusable, match="There is no store"):
        Store.open(root, create=False)
    Store.open(root).close()
    assert (root / "index").is_dir()


def test_a_file_is_no_store(root: Path) -> None:
    root.write_text("x")
    with pytest.raises(StoreUnusable, match="not a directory"):
        Store.open(root)


def test_a_store_below_a_file_is_refused_in_words(root: Path) -> None:
    root.write_text("x")
    with pytest.raises(StoreUnusable, match="cannot be opened"):
        Store.open(root / "store")


def test_a_directory_with_other_things_in_it_is_left_alone(root: Path) -> None:
    root.mkdir()
    (root / "thesis.tex").write_text("x")
    with pytest.raises(StoreUnusable, match="is not a store and not empty"):
        Store.open(root)
    assert os.listdir(root) == ["thesis.tex"]


def test_a_newer_store_is_refused_with_its_number(root: Path) -> None:
    root.mkdir()
    (root / "format").write_text("fuse-ckpt store 2\n")
    with pytest.raises(StoreUnusable, match="has format 2, newer than 1"):
        Store.open(root)


@pytest.mark.parametrize("text", ["git\n", "fuse-ckpt store one\n", "fuse-ckpt store 1\nmore"])
def test_a_format_file_of_something_else_is_no_store(root: Path, text: str) -> None:
    root.mkdir()
    (root / "format").write_text(text)
    with pytest.raises(StoreUnusable, match="is not a store"):
        Store.open(root)


@pytest.mark.parametrize("text", ["", "fuse-ckpt st"])
def test_a_store_whose_maker_died_at_once_is_finished(root: Path, text: str) -> None:
    root.mkdir()
    (root / "format").write_text(text)
    Store.open(root).close()
    assert (root / "format").read_text() == "fuse-ckpt store 1\n"


def test_another_users_store_is_refused_by_name_also_for_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(root).close()
    mine = root.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: mine + 4321)
    with pytest.raises(StoreUnusable, match=f"belongs to {format._user(mine)} and you are user {mine + 4321}"):
        Store.open(root)


@pytest.mark.parametrize("number", format.NETWORK)
def test_a_network_filesystem_is_refused_before_anything_is_made(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(format, "filesystem_type", lambda path: number)
    with pytest.raises(StoreUnusable, match="network filesystem"):
        Store.open(root)
    assert not root.exists()


def test_the_type_of_a_filesystem_is_the_kernels_number() -> None:
    assert format.filesystem_type(Path("/proc")) == 0x9FA0
