from __future__ import annotations

from pathlib import Path

from tests.store.killed import kill_all


def test_whoever_is_killed_while_collecting_leaves_a_store_that_is_whole(root: Path) -> None:
    assert kill_all(root, 12) == []
