"""The kernel tells of a last close after close() has returned: by then its program may have died."""

from __future__ import annotations

from tests.staging.trainer import ME, OTHER, Trainer

KILLED = "its writer was killed by signal 9"


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


def test_one_that_was_killed_between_two_files_is_known_once_its_closes_are_heard(trainer: Trainer) -> None:
    """S12: the marker was not among them."""
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/optimizer.bin")
    trainer.start("checkpoint-1/model.bin", b"m")
    trainer.area.exited(ME, KILLED)
    trainer.close("checkpoint-1/model.bin", death=None)
    (unit,) = trainer.area.drafts
    assert trainer.area.inspect(unit)[1] == f"{KILLED} before it was seen to be finished"


def test_what_others_write_after_its_death_does_not_hide_it(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/rank1.bin", task=OTHER)
    trainer.area.exited(OTHER, KILLED)
    trainer.save("checkpoint-1/trainer_state.json", b"{}")
    (unit,) = trainer.area.drafts
    assert trainer.area.inspect(unit)[1] == f"{KILLED} before it was seen to be finished"


def test_a_file_that_is_removed_while_it_is_open_is_not_waited_for(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/a.bin")
    trainer.start("checkpoint-1/b.bin")
    trainer.area.exited(ME, KILLED)
    trainer.remove("checkpoint-1/b.bin")
    trainer.close("checkpoint-1/b.bin")
    (unit,) = trainer.area.drafts
    assert trainer.area.inspect(unit)[1] == f"{KILLED} before it was seen to be finished"
