"""A process that dies at any step of an operation of the store: each change of the file system is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from fuse_ckpt.model import Checkpoint, State
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import fetch
from tests.dying import Crash, Life, life

Save = Callable[..., Checkpoint]
Act = Callable[[Store], object]


def dies(root: Path, act: Act, at: int) -> Life:
    """Open the store and do `act`, until the `at`-th step of it (0: to its end)."""
    with life(at) as lived:
        try:
            with Store.open(root) as store:
                act(store)
        except Crash:
            pass
    return lived


def every_death(template: Path, tmp_path: Path, act: Act, check: Callable[[Path, Life], None]) -> int:
    """Let `act` die at each of its steps, on a copy of the store each time; returns how many there were."""
    step = 1
    while True:
        root = tmp_path / f"step{step}"
        shutil.copytree(template, root, symlinks=True)
        lived = dies(root, act, step)
        check(root, lived)
        shutil.rmtree(root)
        if not lived.died:
            return step - 1
        step += 1


def assert_nothing_is_left_over(store: Store) -> None:
    """After `recover`: each blob and each manifest has its record, nothing is half-made, everything verifies."""
    store.recover()
    every = store.checkpoints(states=set(State))
    assert {path.stem for path in store.layout.manifests.iterdir()} == {one.id for one in every}
    assert os.listdir(store.layout.tmp) == []
    assert store.verify() == store.problems == []


@pytest.fixture
def template(root: Path, save: Save) -> Path:
    """A store with two checkpoints, and what crashes left: a blob, a manifest, half-made things."""
    with Store.open(root) as store:
        save(store, "one", {"a": b"a", "b": b"b"})
        save(store, "two", {"a": b"a", "c": b"c"})
        lost = store.blob_path(blake3(b"lost").hexdigest())
        lost.parent.mkdir(exist_ok=True)
        lost.write_bytes(b"lo")
        store.layout.manifest("0196f0a5-0000-7000-8000-000000000000").write_bytes(b"{}")
        (store.layout.tmp / "half").mkdir()
        (store.layout.tmp / "half" / "made").write_bytes(b"x")
    return root


def test_recover(template: Path, tmp_path: Path) -> None:
    def check(root: Path, lived: Life) -> None:
        with Store.open(root) as store:
            assert [one.name for one in store.checkpoints()] == ["one", "two"]
            assert store.verify() == []
            assert_nothing_is_left_over(store)
            assert len(list(store.layout.blobs.glob("*/*"))) == 3

    assert every_death(template, tmp_path, Store.recover, check) >= 4


def test_delete(template: Path, tmp_path: Path) -> None:
    """All of what was asked for, or none; the records have the say, whatever the manifests' files tell."""

    def act(store: Store) -> None:
        store.delete([one.id for one in store.checkpoints()])

    def check(root: Path, lived: Life) -> None:
        with Store.open(root) as store:
            names = [one.name for one in store.checkpoints()]
            assert names in ([], ["one", "two"])
            assert lived.died or names == []
            assert_nothing_is_left_over(store)
            act(store)
            assert store.checkpoints() == []

    assert every_death(template, tmp_path, act, check) >= 2


def test_commit(template: Path, tmp_path: Path, save: Save) -> None:
    def act(store: Store) -> None:
        save(store, "three", {"a": b"a", "d": b"d", "e": b"lost"})

    def check(root: Path, lived: Life) -> None:
        with Store.open(root) as store:
            assert [one.name for one in store.checkpoints()] in (["one", "two"], ["one", "two", "three"])
            assert store.verify() == []
            assert_nothing_is_left_over(store)
            act(store)
            assert_nothing_is_left_over(store)

    assert every_death(template, tmp_path, act, check) >= 10


def test_making_a_store(tmp_path: Path, save: Save) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    def check(root: Path, lived: Life) -> None:
        with Store.open(root) as store:
            save(store, "one", {"a": b"a"})
            assert_nothing_is_left_over(store)

    assert every_death(empty, tmp_path, lambda store: store.ensure_job("job", 1), check) >= 10


@pytest.mark.parametrize("there", [False, True])
def test_fetch(template: Path, tmp_path: Path, there: bool) -> None:
    """No file stands under its name that is not whole, and the next fetch needs nothing cleared away by hand."""
    out = tmp_path / "out" / "fetched"
    wanted = {"a": b"a", "b": b"b"}

    def act(store: Store) -> None:
        fetch(store, store.checkpoints()[0], out, force=there)

    def check(root: Path, lived: Life) -> None:
        found = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} if out.exists() else {}
        assert found.items() <= wanted.items()
        assert there or found in ({}, wanted)
        if lived.died:
            dies(root, act, 0)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == wanted
        assert os.listdir(out.parent) == ["fetched"]
        shutil.rmtree(out.parent)
        out.parent.mkdir()
        if there:
            out.mkdir()

    out.parent.mkdir()
    if there:
        out.mkdir()
    assert every_death(template, tmp_path, act, check) >= 6
