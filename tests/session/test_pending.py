"""What is pending: of what is sealed while somebody looks nothing is left out, and nothing told twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_ckpt.model import Shape, Unit
from fuse_ckpt.session import control, pending_units
from fuse_ckpt.store import Store
from tests.staging.trainer import JOB, Clock, Trainer, new_area

UNIT = Unit("step_1", Shape.DIRECTORY)


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    with Store.open(tmp_path / "store") as store:
        store.ensure_job(JOB, 1)
        fd = os.open(store.layout.work(JOB), os.O_RDONLY | os.O_DIRECTORY)
        yield Trainer(store, new_area(store, fd, Clock()), store.layout.work(JOB))
        os.close(fd)


@pytest.mark.parametrize("again", [False, True])
def test_a_unit_that_is_sealed_while_the_daemon_is_asked_is_pending(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    trainer.mkdir("step_1")
    trainer.save("step_1/a.bin")

    def drafts() -> list[control.Answer]:
        drafts = trainer.area.drafts.items()
        return [{"name": unit.name, "since_ns": draft.created_ns, "size": 4} for unit, draft in drafts]

    def ask(path: Path, question: str) -> control.Answer:
        answer = drafts()
        trainer.save("step_1/b.bin")
        assert trainer.area.seal(UNIT, *trainer.area.inspect(UNIT))
        if again:  # and a new version is being written
            trainer.save("step_1/c.bin")
            answer = drafts()
        return {"drafts": answer}

    monkeypatch.setattr(control, "ask", ask)
    assert [unit.name for unit in pending_units(trainer.store, JOB)] == ["step_1"] * (1 + again)


def test_a_draft_is_pending_beside_a_stuck_one_although_the_clock_went_back(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.mkdir("step_1")
    trainer.save("step_1/a.bin")
    assert trainer.area.seal(UNIT, *trainer.area.inspect(UNIT))
    draft = {"name": UNIT.name, "since_ns": 1, "size": 4}
    monkeypatch.setattr(control, "ask", lambda path, question: {"drafts": [draft]})
    assert [unit.name for unit in pending_units(trainer.store, JOB)] == ["step_1"] * 2
