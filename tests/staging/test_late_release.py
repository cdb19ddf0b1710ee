"""The kernel tells of a last close after close() has returned: by then its program may have died."""

from __future__ import annotations

import pytest

from tests.staging.trainer import ME, Trainer

KILLED = "its writer was killed by signal 9"


@pytest.mark.xfail(
    strict=True, reason="whether a killed writer had more to write is decided before its closes are heard"
)
def test_a_marker_that_was_closed_before_its_writer_died_is_the_end_of_the_save(trainer: Trainer) -> None:
    """S12: a unit in which a file was closed for its writer only by the writer's death is `failed`: none was here."""
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/optimizer.bin")
    trainer.start("checkpoint-1/trainer_state.json", b"{}")
    trainer.area.exited(ME, KILLED)
    trainer.close("checkpoint-1/trainer_state.json", death=None)  # what its FLUSH said, while the writer lived
    (unit,) = trainer.area.drafts
    assert trainer.area.is_over(unit)
    assert trainer.area.inspect(unit)[1] is None
