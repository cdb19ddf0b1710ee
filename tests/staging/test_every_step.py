"""A mount that dies at any step at all, not only at the named points: each change of the file system is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dying import Crash, Life, life
from tests.staging.test_recovery import SAVED, Story, assert_all_is_well, drain, listed, mount, saves

SHARES = 4  # tests, so that they can run beside each other


def live(root: Path, story: Story, dies_at: int = 0) -> Life:
    """One life of a mount, which ends at a step, or in order."""
    with life(dies_at) as lived:
        try:
            mount(root, story)
        except Crash:
            pass
        except BaseExceptionGroup as group:
            rest = group.split(Crash)[1]
            if rest is not None:
                raise rest from None
    return lived


def check(root: Path) -> None:
    """What every later mount finds: what was saved, each once, and nothing left over.

    Where the training died too, between two files of a directory, the content decides (S12): each file is whole.
    """
    for name, files in listed(root).items():
        assert files
        assert files.items() <= SAVED[name].items()
    assert_all_is_well(root)


@pytest.mark.parametrize("share", range(SHARES))
def test_wherever_a_mount_dies_nothing_is_lost_and_nothing_is_left(tmp_path: Path, share: int) -> None:
    count = len(live(tmp_path / "whole", saves).steps)
    assert count > 100, "as many steps as these saves take"
    for step in range(1 + share, count + 1, SHARES):
        root = tmp_path / f"store{step}"
        lived = live(root, saves, step)
        assert lived.died
        before = listed(root)
        mount(root, drain)
        assert before.items() <= listed(root).items(), lived.steps[step - 1]
        check(root)


@pytest.mark.parametrize("share", range(SHARES))
def test_wherever_the_mount_after_it_dies_the_third_one_has_everything(tmp_path: Path, share: int) -> None:
    step = 1 + share
    while True:
        root = tmp_path / f"store{step}"
        assert live(root, saves, 50 + 11 * share).died
        second = live(root, drain, step)
        mount(root, drain)
        check(root)
        if not second.died:
            return
        step += SHARES
