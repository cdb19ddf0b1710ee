"""Which draft is committed next, and that a huge one keeps nobody waiting."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fuse_ckpt.model import InodeKey, Kind, Shape, Unit
from fuse_ckpt.staging import Area, Committer, Settings
from fuse_ckpt.staging.commit import commit as really
from fuse_ckpt.staging.journal import Journal, Linked, Sealed
from fuse_ckpt.staging.lanes import BIG, BIG_LANES, next_draft
from fuse_ckpt.store import Store
from tests.staging.trainer import JOB, Trainer, torch_zip


def sealed(name: str, size: int = 1, number: int = 0) -> Sealed:
    file = Linked(name, Kind.FILE, 0o644, 1, size, InodeKey(1, 1), link="m0")
    return Sealed(Path(f"{name}-{number}"), Journal(Unit(name, Shape.FLAT), 1, 1, (file,)))


def begun(queue: list[Sealed]) -> list[str]:
    """What is under way once nothing more may begin."""
    under_way: list[Path] = []
    while (one := next_draft(queue, under_way)) is not None:
        under_way.append(one.directory)
    return [path.name for path in under_way]


def test_small_ones_go_one_by_one_in_their_order() -> None:
    queue = [sealed("a"), sealed("b"), sealed("c")]
    assert begun(queue) == ["a-0"]
    assert next_draft(queue[1:], ()) is queue[1]


def test_a_small_one_passes_a_big_one() -> None:
    assert begun([sealed("big", BIG), sealed("a"), sealed("b")]) == ["big-0", "a-0"]


def test_a_few_big_ones_go_beside_each_other() -> None:
    queue = [sealed(f"{n}", BIG) for n in range(5)]
    assert len(begun(queue)) == BIG_LANES
    assert begun([*queue, sealed("a")])[-1] == "a-0"


@pytest.mark.parametrize("sizes", [(BIG, 1), (1, BIG), (BIG, BIG), (1, 1)])
def test_two_versions_of_one_name_never_go_at_once(sizes: tuple[int, int]) -> None:
    first, second = (sealed("a", size, number) for number, size in enumerate(sizes))
    assert begun([first, second]) == ["a-0"]
    assert next_draft([second], ()) is second


def test_a_version_waits_for_one_that_waits_itself() -> None:
    queue = [*(sealed(f"{n}", BIG) for n in range(BIG_LANES)), sealed("x", BIG), sealed("x", 1, 1), sealed("y")]
    assert begun(queue) == ["0-0", "1-0", "2-0", "y-0"]


def test_nothing_waiting_is_nothing_to_begin() -> None:
    assert next_draft([], ()) is None


def test_a_small_checkpoint_is_listed_while_a_huge_one_is_still_read(
    store: Store, root_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, reading = threading.Event(), threading.Event()

    def commit(store: Store, job: str, draft: Sealed, doubt: str | None) -> Any:
        if draft.journal.unit.name == "huge.pt":
            reading.set()
            assert go_on.wait(60)
        return really(store, job, draft, doubt)

    monkeypatch.setattr("fuse_ckpt.staging.committer.commit", commit)
    monkeypatch.setattr("fuse_ckpt.staging.lanes.BIG", 1000)

    async def story() -> list[str]:
        area = Area(root_fd, store.layout.pending(JOB), Settings())
        trainer = Trainer(store, area, store.layout.work(JOB))
        task = Committer(area, store, JOB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task.run)
            await wait_all_tasks_blocked()
            trainer.save("huge.pt", torch_zip(b"h" * 2000))
            area.finish()
            await trio.to_thread.run_sync(reading.wait)
            for name in ("a.pt", "b.pt", "huge.pt"):
                if name == "huge.pt":
                    trainer.rewrite(name, torch_zip(b"second"))
                else:
                    trainer.save(name, torch_zip())
            area.finish()
            with trio.fail_after(60):
                while len(trainer.checkpoints()) < 2:
                    await trio.sleep(0.01)
            before = list(trainer.checkpoints())
            go_on.set()
            await task.drain()
            nursery.cancel_scope.cancel()
        assert trainer.checkpoints()["huge.pt@2"]["huge.pt"] == torch_zip(b"second")
        return [*before, "|", *trainer.checkpoints()]

    assert trio.run(story) == ["a.pt@1", "b.pt@1", "|", "a.pt@1", "b.pt@1", "huge.pt@1", "huge.pt@2"]
