"""What the area decides from the reports of the filesystem, on a real tree and a clock that stands still."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from fuse_ckpt.model import Shape, Unit
from fuse_ckpt.staging import load_all
from fuse_ckpt.staging.area import Area
from fuse_ckpt.store import Store
from tests.staging.trainer import JOB, ME, OTHER, UNSEEN, Clock, Trainer, key_of, new_area, torch_zip

STEP = Unit("checkpoint-1", Shape.DIRECTORY)


def save_step(trainer: Trainer, name: str = "checkpoint-1", *, marker: bool = False) -> None:
    trainer.mkdir(name)
    trainer.save(f"{name}/weights", name.encode())
    if marker:
        trainer.save(f"{name}/trainer_state.json", b"{}")


# -- when a draft is due ----------------------------------------------------------------------------------------------


def test_a_flat_file_is_due_a_fifth_of_a_second_after_its_last_close(trainer: Trainer) -> None:
    trainer.start("a.pt", torch_zip())
    assert trainer.due() == {}
    trainer.close("a.pt")
    assert trainer.due() == {"a.pt": 0.2}


def test_a_directory_is_due_after_five_quiet_seconds_of_one_process(trainer: Trainer, clock: Clock) -> None:
    save_step(trainer)
    clock.now += 3
    assert trainer.due() == {"checkpoint-1": 2}
    trainer.save("checkpoint-1/more")
    assert trainer.due() == {"checkpoint-1": 5}


@pytest.mark.parametrize("second", [OTHER, UNSEEN])
def test_two_processes_or_one_that_nobody_sees_take_thirty_seconds(trainer: Trainer, second: int) -> None:
    save_step(trainer)
    trainer.save("checkpoint-1/rank1", task=second)
    assert trainer.due() == {"checkpoint-1": 30}


def test_the_marker_written_last_shortens_the_quiet(trainer: Trainer) -> None:
    save_step(trainer, marker=True)
    assert trainer.due() == {"checkpoint-1": 1}
    trainer.save("checkpoint-1/rng_state_1.pth", torch_zip(), task=OTHER)
    assert trainer.due() == {"checkpoint-1": 30}


def test_the_quiet_period_can_be_chosen(store: Store, root_fd: int, clock: Clock, trainer: Trainer) -> None:
    trainer.area = new_area(store, root_fd, clock, quiet_period=2.5)
    save_step(trainer)
    trainer.save("checkpoint-1/rank1", task=OTHER)
    assert trainer.due() == {"checkpoint-1": 2.5}


def test_a_directory_renamed_into_place_is_due_at_once_under_its_final_name(trainer: Trainer) -> None:
    save_step(trainer, "tmp-checkpoint-1.tmp")
    assert trainer.due() == {}
    trainer.rename("tmp-checkpoint-1.tmp", "checkpoint-1")
    assert trainer.due() == {"checkpoint-1": 0}
    assert set(trainer.area.drafts) == {STEP}


def test_a_file_written_after_the_rename_ends_the_haste(trainer: Trainer) -> None:
    save_step(trainer, "checkpoint-1.tmp")
    trainer.rename("checkpoint-1.tmp", "checkpoint-1")
    trainer.save("checkpoint-1/late")
    assert trainer.due() == {"checkpoint-1": 5}


def test_a_directory_renamed_inside_a_unit_does_not_finish_it(trainer: Trainer) -> None:
    """The parts of a composite are each written aside and renamed, one after the other."""
    trainer.mkdir("checkpoint-1")
    trainer.mkdir("checkpoint-1/tmp_model")
    trainer.save("checkpoint-1/tmp_model/a")
    trainer.rename("checkpoint-1/tmp_model", "checkpoint-1/model")
    assert trainer.due() == {"checkpoint-1": 5}


def test_a_directory_of_units_renamed_into_place_finishes_each(trainer: Trainer) -> None:
    trainer.mkdir("all.tmp")
    save_step(trainer, "all.tmp/checkpoint-1")
    trainer.rename("all.tmp", "checkpoints")
    assert trainer.due() == {"checkpoints/checkpoint-1": 0}


def test_a_file_renamed_while_it_is_open_holds_its_draft_until_it_is_closed(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.start("checkpoint-1/model.safetensors.tmp")
    trainer.rename("checkpoint-1/model.safetensors.tmp", "checkpoint-1/model.safetensors")
    assert trainer.due() == {}
    trainer.close("checkpoint-1/model.safetensors.tmp")
    assert trainer.due() == {"checkpoint-1": 5}


def test_a_flat_file_renamed_into_place_after_its_close_is_due_like_a_closed_one(trainer: Trainer) -> None:
    trainer.save("a.pt.tmp", torch_zip())
    assert trainer.area.drafts == {}
    trainer.rename("a.pt.tmp", "a.pt")
    assert trainer.due() == {"a.pt": 0.2}


def test_a_temporary_file_open_at_the_root_holds_the_root_checkpoint(trainer: Trainer) -> None:
    trainer.save("config.json", b"{}")
    trainer.start("tmpabcdef12")
    assert trainer.due() == {}


def test_a_unit_whose_writers_have_all_exited_is_due_at_once(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.save("checkpoint-1/rank1", task=OTHER)
    trainer.area.exited(ME)
    assert trainer.due() == {"checkpoint-1": 30}
    trainer.area.exited(OTHER)
    assert trainer.due() == {"checkpoint-1": 0}


def test_an_exit_says_nothing_of_a_writer_that_nobody_sees(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.save("checkpoint-1/rank1", task=UNSEEN)
    trainer.area.exited(ME)
    assert trainer.due() == {"checkpoint-1": 30}


def test_a_process_id_that_comes_again_is_alive(trainer: Trainer) -> None:
    trainer.area.exited(ME)
    save_step(trainer)
    assert trainer.due() == {"checkpoint-1": 5}


def many(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.save("checkpoint-1/rank1", task=OTHER)
    assert trainer.due() == {"checkpoint-1": 30}


def test_the_next_unit_of_the_same_process_tells_that_the_last_is_done(trainer: Trainer) -> None:
    many(trainer)
    trainer.mkdir("checkpoint-2")
    trainer.start("checkpoint-2/weights")
    assert trainer.due() == {"checkpoint-1": 5}


def test_the_removal_of_an_older_unit_tells_that_the_newest_is_done(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-0")
    (trainer.work / "checkpoint-0" / "old").write_bytes(b"old")
    many(trainer)
    trainer.remove("checkpoint-0/old")
    assert trainer.due() == {"checkpoint-1": 5}


@pytest.mark.parametrize("text", [b"checkpoint-1", b"checkpoint-1\n", b"./out/checkpoint-1/"])
def test_a_latest_file_tells_that_what_it_names_is_done(trainer: Trainer, text: bytes) -> None:
    many(trainer)
    trainer.save("latest", text, task=UNSEEN)
    assert trainer.due() == {"checkpoint-1": 5}


def test_a_latest_file_that_names_another_tells_nothing(trainer: Trainer) -> None:
    many(trainer)
    trainer.save("latest", b"checkpoint-9", task=UNSEEN)
    assert trainer.due() == {"checkpoint-1": 30}


def test_a_symlink_tells_that_what_it_points_at_is_done(trainer: Trainer) -> None:
    many(trainer)
    trainer.symlink("checkpoint-1", "last")
    assert trainer.due() == {"checkpoint-1": 5}


def test_finish_makes_all_due_but_what_is_still_written(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.start("b.pt")
    trainer.area.finish()
    assert trainer.due() == {"checkpoint-1": 0}
    assert trainer.area.is_finishing()


def test_logs_pointers_and_temporary_files_start_nothing(trainer: Trainer) -> None:
    trainer.mkdir("runs")
    for path in ("train.log", "runs/events.out.tfevents.1", "latest", "a.pt.tmp", "metrics.csv"):
        trainer.save(path)
    assert trainer.area.drafts == {}


def test_a_log_inside_a_unit_does_not_make_a_committed_unit_new(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/train.log")
    assert trainer.area.drafts == {}


def test_a_file_opened_for_writing_and_closed_unchanged_makes_no_draft(trainer: Trainer) -> None:
    path = trainer.work / "a.pt"
    path.write_bytes(torch_zip())
    trainer.area.opened("a.pt", key_of(path), ME, changed=False)
    trainer.area.released(key_of(path), changed=False)
    assert trainer.area.drafts == {}


def test_a_hard_link_is_a_unit_of_its_own(trainer: Trainer, clock: Clock) -> None:
    trainer.save("last.pt", torch_zip())
    clock.now += 0.1
    trainer.link("last.pt", "best.pt")
    assert {unit.name for unit in trainer.area.drafts} == {"last.pt", "best.pt"}


def test_the_tokenizer_written_twice_is_one_draft(trainer: Trainer, clock: Clock) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/tokenizer.json", b"{}")
    clock.now += 0.5
    trainer.rewrite("checkpoint-1/tokenizer.json", b"{}")
    trainer.save("checkpoint-1/trainer_state.json", b"{}")
    assert trainer.queued() == []
    assert trainer.due() == {"checkpoint-1": 1}


def test_an_uncommitted_unit_that_is_renamed_only_gets_its_new_name(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.rename("checkpoint-1", "checkpoint-2")
    assert {unit.name for unit in trainer.area.drafts} == {"checkpoint-2"}
    assert trainer.queued() == []


def test_an_uncommitted_flat_file_that_is_renamed_only_gets_its_new_name(trainer: Trainer) -> None:
    trainer.save("a.pt", torch_zip())
    trainer.rename("a.pt", "b.pt")
    assert {unit.name for unit in trainer.area.drafts} == {"b.pt"}
    assert trainer.queued() == []


def test_a_unit_whose_files_have_all_gone_is_no_draft(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.start("checkpoint-1/a")
    trainer.remove("checkpoint-1/a")
    assert trainer.area.drafts == {}
    trainer.close("checkpoint-1/a")
    assert trainer.area.drafts == {}


# -- before anything destroys it --------------------------------------------------------------------------------------


def test_rmtree_right_after_the_last_close_seals_the_whole_unit_first(trainer: Trainer) -> None:
    save_step(trainer, marker=True)
    trainer.rmtree("checkpoint-1")
    assert trainer.queued() == [("checkpoint-1", ["checkpoint-1/trainer_state.json", "checkpoint-1/weights"])]
    assert trainer.area.drafts == {}


def test_truncation_of_a_complete_flat_file_seals_it_first(trainer: Trainer) -> None:
    trainer.save("a.pt", torch_zip(b"first"))
    sealed = key_of(trainer.work / "a.pt")
    trainer.rewrite("a.pt", torch_zip(b"second"))
    assert trainer.queued() == [("a.pt", ["a.pt"])]
    assert sealed in trainer.area.sealed
    (one,) = trainer.area.queue
    assert one.source(one.journal.files[0]).read_bytes() == torch_zip(b"first")


def test_a_rename_over_a_complete_flat_file_seals_it_first(trainer: Trainer) -> None:
    trainer.save("a.pt", torch_zip(b"first"))
    trainer.save("a.pt.tmp", torch_zip(b"second"))
    trainer.rename("a.pt.tmp", "a.pt")
    (one,) = trainer.area.queue
    assert one.source(one.journal.files[0]).read_bytes() == torch_zip(b"first")
    assert trainer.due() == {"a.pt": 0.2}


def test_a_directory_that_is_moved_into_another_unit_is_kept_with_its_own_first(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.mkdir("checkpoint-1/optimizer")
    trainer.save("checkpoint-1/optimizer/state")
    trainer.mkdir("best")
    trainer.rename("checkpoint-1/optimizer", "best/optimizer")
    assert trainer.queued() == [("checkpoint-1", ["checkpoint-1/optimizer/state", "checkpoint-1/weights"])]
    assert [unit.name for unit in trainer.area.drafts] == ["best"]


def test_a_unit_whose_newest_file_has_gone_is_kept_when_it_is_renamed_away(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.save("checkpoint-1/last")
    os.unlink(trainer.work / "checkpoint-1/last")
    trainer.rename("checkpoint-1", "checkpoint-1.tmp")
    assert trainer.queued() == [("checkpoint-1", ["checkpoint-1/weights"])]


def test_a_unit_that_a_removal_has_made_whole_is_due_and_kept(trainer: Trainer) -> None:
    """A program that could not write a file removes what there is of it."""
    save_step(trainer)
    trainer.save("checkpoint-1/half.json", b"{")
    (draft,) = trainer.area.drafts.values()
    trainer.area.not_whole(draft, trainer.area.inspect(draft.unit)[1])
    assert trainer.due() == {}
    trainer.remove("checkpoint-1/half.json")
    assert trainer.due() == {"checkpoint-1": 5}
    trainer.rmtree("checkpoint-1")
    assert trainer.queued() == [("checkpoint-1", ["checkpoint-1/weights"])]


def test_seals_keep_their_order_when_the_clock_goes_back(
    trainer: Trainer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash their times alone tell which version is the later one."""
    trainer.save("a.pt", torch_zip(b"1"))
    trainer.rewrite("a.pt", torch_zip(b"2"))
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    trainer.rewrite("a.pt", torch_zip(b"3"))
    queued = [sealed.directory for sealed in trainer.area.queue]
    assert [sealed.directory for sealed in load_all(store.layout.pending(JOB), clean=False)] == queued


def test_what_is_incomplete_is_destroyed_without_a_seal(trainer: Trainer) -> None:
    trainer.save("a.pt", torch_zip()[:-30])
    trainer.remove("a.pt")
    assert trainer.queued() == []


def test_what_is_still_written_is_destroyed_without_a_seal(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.start("checkpoint-1/more")
    trainer.remove("checkpoint-1/weights")
    assert trainer.queued() == []


def test_a_seal_that_the_disk_refuses_does_not_stop_the_removal(trainer: Trainer) -> None:
    trainer.save("a.pt", torch_zip())
    os.rmdir(trainer.store.layout.pending("job"))
    trainer.remove("a.pt")
    assert not (trainer.work / "a.pt").exists()


# -- the seal ---------------------------------------------------------------------------------------------------------


def inspect_and_seal(area: Area, unit: Unit) -> bool:
    scan, fault = area.inspect(unit)
    return area.seal(unit, scan, fault)


def test_a_writable_descriptor_elsewhere_keeps_the_seal_away(trainer: Trainer) -> None:
    save_step(trainer)
    fd = os.open(trainer.work / "checkpoint-1" / "weights", os.O_WRONLY)
    try:
        assert not inspect_and_seal(trainer.area, STEP)
        assert trainer.queued() == []
        assert STEP in trainer.area.drafts
    finally:
        os.close(fd)
    assert inspect_and_seal(trainer.area, STEP)


def test_a_sealed_inode_is_sealed_until_it_is_settled_and_a_blob_for_ever(trainer: Trainer) -> None:
    save_step(trainer)
    key = key_of(trainer.work / "checkpoint-1" / "weights")
    assert key not in trainer.area.sealed
    inspect_and_seal(trainer.area, STEP)
    assert key in trainer.area.sealed
    (sealed,) = trainer.area.queue
    trainer.area.sealed.settle(sealed, [])
    assert key not in trainer.area.sealed
    trainer.area.sealed.add_blobs([key])
    assert key in trainer.area.sealed
    trainer.area.sealed.created(key)
    assert key not in trainer.area.sealed


def test_links_in_pending_are_hidden(trainer: Trainer) -> None:
    save_step(trainer)
    path = trainer.work / "checkpoint-1" / "weights"
    inspect_and_seal(trainer.area, STEP)
    links = path.stat().st_nlink
    assert links == 2
    assert links - trainer.area.sealed.hidden_links(key_of(path), links) == 1


def test_a_temporary_file_left_in_a_unit_is_a_fault(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.save("checkpoint-1/x.tmp")
    assert trainer.area.inspect(STEP)[1] == "a temporary file is left in it: checkpoint-1/x.tmp"


def _leave_debris(trainer: Trainer) -> Path:
    """What a save that was killed an hour ago left where the next one of the same step is to go."""
    (trainer.work / "checkpoint-1").mkdir()
    debris = trainer.work / "checkpoint-1" / "x.tmp"
    debris.write_bytes(b"half")
    _age(debris)
    return debris


def _age(path: Path) -> None:
    an_hour_ago = path.stat().st_mtime - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))


def test_a_temporary_file_of_an_earlier_save_is_no_fault_of_one_that_wrote_all_anew(trainer: Trainer) -> None:
    _leave_debris(trainer)
    trainer.save("checkpoint-1/weights")
    trainer.save("checkpoint-1/optimizer")
    scan, fault = trainer.area.inspect(STEP)
    assert fault is None
    assert [found.path for found in scan.files] == ["checkpoint-1/optimizer", "checkpoint-1/weights"]


def test_a_temporary_file_is_a_fault_where_a_member_is_older(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/weights")
    debris = trainer.work / "checkpoint-1" / "x.tmp"
    debris.write_bytes(b"half")
    _age(debris)
    assert trainer.area.inspect(STEP)[1] is None
    _age(trainer.work / "checkpoint-1" / "weights")
    assert trainer.area.inspect(STEP)[1] == "a temporary file is left in it: checkpoint-1/x.tmp"


def test_a_temporary_file_that_is_open_is_a_fault_however_old(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.start("checkpoint-1/x.tmp")
    trainer.save("checkpoint-1/weights")
    _age(trainer.work / "checkpoint-1" / "x.tmp")
    assert trainer.area.inspect(STEP)[1] == "a temporary file is left in it: checkpoint-1/x.tmp"
    trainer.close("checkpoint-1/x.tmp")


def test_a_temporary_file_is_a_fault_where_nobody_saw_what_came_after_it(trainer: Trainer) -> None:
    _leave_debris(trainer)
    (trainer.work / "checkpoint-1" / "weights").write_bytes(torch_zip())
    trainer.area.found(STEP, trainer.area.tree.scan(STEP).files)
    assert trainer.area.inspect(STEP)[1] == "a temporary file is left in it: checkpoint-1/x.tmp"


def test_a_file_closed_only_by_its_writers_death_is_a_fault(trainer: Trainer) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.start("checkpoint-1/raw")
    trainer.close("checkpoint-1/raw", death="its writer was killed by signal 9")
    fault = trainer.area.inspect(STEP)[1]
    assert fault == "checkpoint-1/raw was not closed by its program: its writer was killed by signal 9"
    trainer.rewrite("checkpoint-1/raw", b"whole")
    assert trainer.area.inspect(STEP)[1] is None


def test_a_draft_that_is_not_whole_is_not_due_again_before_it_changes(trainer: Trainer) -> None:
    save_step(trainer)
    draft = trainer.area.drafts[STEP]
    draft.incomplete_at = draft.progress
    assert trainer.due() == {}
    trainer.save("checkpoint-1/more")
    assert trainer.due() == {"checkpoint-1": 5}


def test_what_cannot_be_sealed_yet_waits_for_its_time(trainer: Trainer, clock: Clock) -> None:
    save_step(trainer)
    due = trainer.area.due({STEP: clock.now + 60})
    assert due == (clock.now + 60, STEP)


def test_the_units_of_a_nested_container_are_named_by_their_path(trainer: Trainer) -> None:
    trainer.mkdir("checkpoints")
    trainer.mkdir("checkpoints/step_5")
    trainer.save("checkpoints/step_5/a")
    trainer.save("checkpoints/b.pt", torch_zip())
    assert {unit.name for unit in trainer.area.drafts} == {"checkpoints/step_5", "checkpoints/b.pt"}


def test_a_checkpoint_was_created_at_its_last_close(trainer: Trainer, tmp_path: Path) -> None:
    save_step(trainer)
    before = trainer.area.drafts[STEP].created_ns
    trainer.save("checkpoint-1/more")
    after = trainer.area.drafts[STEP].created_ns
    inspect_and_seal(trainer.area, STEP)
    assert 0 < before < after == trainer.area.queue[0].journal.created_ns


# -- signs and states that few writers show ---------------------------------------------------------------------------


def test_a_mark_beside_a_checkpoint_holds_it_until_it_goes(trainer: Trainer, clock: Clock) -> None:
    trainer.mkdir("checkpoints")
    trainer.save("checkpoints/step=10-last-unfinished", b"")
    trainer.save("checkpoints/step=10-last.ckpt", torch_zip())
    unit = Unit("checkpoints/step=10-last.ckpt", Shape.FLAT)
    fault = trainer.area.inspect(unit)[1]
    assert fault == "checkpoints/step=10-last-unfinished says that the save was not finished"
    trainer.area.not_whole(trainer.area.drafts[unit], trainer.area.inspect(unit)[1])
    clock.now += 100
    assert trainer.due() == {}
    trainer.remove("checkpoints/step=10-last-unfinished")
    assert trainer.due() == {"checkpoints/step=10-last.ckpt": 0.2}
    assert trainer.area.inspect(unit)[1] is None


def test_a_directory_whose_mark_goes_is_due_as_after_a_marker(trainer: Trainer) -> None:
    trainer.mkdir("checkpoints")
    trainer.save("checkpoints/step=10-unfinished", b"")
    trainer.mkdir("checkpoints/step=10")
    trainer.save("checkpoints/step=10/weights")
    assert trainer.due() == {"checkpoints/step=10": 5}
    trainer.remove("checkpoints/step=10-unfinished")
    assert trainer.due() == {"checkpoints/step=10": 1}
    trainer.save("checkpoints/step=10/more")
    assert trainer.due() == {"checkpoints/step=10": 5}


def test_megatrons_pointer_names_an_iteration_by_its_number(trainer: Trainer) -> None:
    trainer.mkdir("iter_0000010")
    trainer.save("iter_0000010/a")
    trainer.save("iter_0000010/b", task=OTHER)
    trainer.save("latest_checkpointed_iteration.txt", b"9", task=UNSEEN)
    assert trainer.due() == {"iter_0000010": 30}
    trainer.rewrite("latest_checkpointed_iteration.txt", b"10")
    assert trainer.due() == {"iter_0000010": 5}


def test_a_file_that_is_changed_in_place_again_and_again_is_looked_at_less_often(
    trainer: Trainer, clock: Clock
) -> None:
    def append() -> None:
        path = trainer.work / "metrics.pkl"
        key = key_of(path)
        trainer.area.opened("metrics.pkl", key, ME, changed=False)
        path.write_bytes(path.read_bytes() + b"more")
        trainer.area.released(key, changed=True)

    trainer.save("metrics.pkl")
    for _ in range(2):  # DeepSpeed's writer appends twice to what it has written
        append()
        assert trainer.due() == {"metrics.pkl": 0.2}
    append()
    assert trainer.due() == {"metrics.pkl": 30}
    trainer.area.exited(ME)
    assert trainer.due() == {"metrics.pkl": 0}
    trainer.rewrite("metrics.pkl", b"anew")
    assert trainer.due() == {"metrics.pkl": 0.2}


def test_a_unit_that_is_written_for_hours_without_pause_waits_and_takes_no_memory(
    trainer: Trainer, clock: Clock
) -> None:
    trainer.mkdir("checkpoint-1")
    trainer.save("checkpoint-1/first")
    draft = trainer.area.drafts[STEP]
    path = trainer.work / "checkpoint-1" / "first"
    for _ in range(3000):
        clock.now += 4
        trainer.area.opened("checkpoint-1/first", key_of(path), ME, changed=True)
        trainer.area.exited(ME)  # a process each, as from a shell's loop
        trainer.area.released(key_of(path), changed=True)
        trainer.area.exited(ME)
        trainer.area.opened("checkpoint-1/first", key_of(path), OTHER, changed=True)
        trainer.area.released(key_of(path), changed=True)
        assert trainer.due() == {"checkpoint-1": 30}
    assert (draft.writers, draft.exited) == ({OTHER}, 2)
    assert trainer.area.orphans.next_look() < math.inf
    assert give_up(trainer, clock, 60) == []
    assert trainer.area.orphans.next_look() == math.inf
    trainer.area.exited(OTHER)
    assert set(trainer.due()) == {"checkpoint-1"}


def test_a_pointer_that_is_being_written_is_not_sealed_under_its_writers_hands(trainer: Trainer) -> None:
    save_step(trainer)
    trainer.start("latest", b"")
    inspect_and_seal(trainer.area, STEP)
    assert trainer.area.queue[0].keys == [key_of(trainer.work / "checkpoint-1" / "weights")]
    assert key_of(trainer.work / "latest") not in trainer.area.sealed
    trainer.close("latest")


def test_torchtunes_sibling_is_a_companion_of_each_epoch(trainer: Trainer) -> None:
    trainer.mkdir("epoch_0")
    trainer.mkdir("recipe_state")
    trainer.save("epoch_0/model.bin")
    trainer.save("recipe_state/recipe_state.pt", torch_zip())
    inspect_and_seal(trainer.area, Unit("epoch_0", Shape.DIRECTORY))
    (sealed,) = trainer.area.queue
    assert [one.path for one in sealed.journal.files if one.companion] == ["recipe_state/recipe_state.pt"]
    assert Unit("recipe_state", Shape.DIRECTORY) in trainer.area.drafts


# -- files that a child has inherited ---------------------------------------------------------------------------------


@pytest.fixture
def orphan(trainer: Trainer) -> Trainer:
    """A file that its opener left open: a child of it, that knows nothing of it, holds the descriptor."""
    trainer.start("a.pt", torch_zip(), task=OTHER)
    trainer.area.exited(OTHER, None)
    return trainer


def give_up(trainer: Trainer, clock: Clock, seconds: float) -> list[str | None]:
    """Let time pass as the committer does; the files that count as closed by then."""
    given_up = []
    end = clock.now + seconds
    while clock.now < end:
        clock.now = min(end, max(clock.now, trainer.area.orphans.next_look()))
        for file in list(trainer.area.orphans.idle(clock.now)):
            trainer.area.left_open(file)
            given_up.append(file.path)
    return given_up


def test_a_file_whose_opener_has_gone_counts_as_closed_after_ten_idle_minutes(orphan: Trainer, clock: Clock) -> None:
    assert orphan.due() == {}
    assert give_up(orphan, clock, 590) == []
    assert orphan.due() == {}
    assert give_up(orphan, clock, 20) == ["a.pt"]
    assert set(orphan.due()) == {"a.pt"}
    assert orphan.area.orphans.next_look() == math.inf


def test_a_write_begins_the_ten_minutes_anew(orphan: Trainer, clock: Clock) -> None:
    give_up(orphan, clock, 500)
    os.utime(orphan.work / "a.pt", (5, 5))
    assert give_up(orphan, clock, 500) == []
    assert give_up(orphan, clock, 200) == ["a.pt"]


def test_what_may_still_be_written_is_copied_not_linked(orphan: Trainer, clock: Clock) -> None:
    give_up(orphan, clock, 700)
    unit = Unit("a.pt", Shape.FLAT)
    key = key_of(orphan.work / "a.pt")
    assert inspect_and_seal(orphan.area, unit)
    (sealed,) = orphan.area.queue
    assert sealed.keys != [key]
    assert sealed.source(sealed.journal.files[0]).read_bytes() == torch_zip()
    assert key not in orphan.area.sealed
    links = (orphan.work / "a.pt").stat().st_nlink
    assert (links, orphan.area.sealed.hidden_links(key, links)) == (1, 0)
    orphan.close("a.pt")
    assert orphan.area.drafts == {}, "nothing was written since"


def test_what_is_written_after_all_is_a_version(orphan: Trainer, clock: Clock) -> None:
    give_up(orphan, clock, 700)
    inspect_and_seal(orphan.area, Unit("a.pt", Shape.FLAT))
    with open(orphan.work / "a.pt", "ab") as file:
        file.write(b"more")
    orphan.close("a.pt")
    assert {unit.name for unit in orphan.area.drafts} == {"a.pt"}


def test_an_opener_that_was_killed_makes_it_failed(trainer: Trainer, clock: Clock) -> None:
    trainer.start("raw.bin", b"half", task=OTHER)
    trainer.area.exited(OTHER, "its writer was killed by signal 9")
    give_up(trainer, clock, 700)
    fault = trainer.area.inspect(Unit("raw.bin", Shape.FLAT))[1]
    assert fault == "raw.bin was not closed by its program: its writer was killed by signal 9"


def test_a_file_that_is_opened_again_counts_as_open(orphan: Trainer, clock: Clock) -> None:
    give_up(orphan, clock, 700)
    orphan.area.opened("a.pt", key_of(orphan.work / "a.pt"), ME, changed=False)
    assert orphan.due() == {}


def test_one_of_two_openers_that_lives_is_waited_for(trainer: Trainer, clock: Clock) -> None:
    trainer.start("a.pt", torch_zip(), task=OTHER)
    trainer.area.opened("a.pt", key_of(trainer.work / "a.pt"), ME, changed=False)
    trainer.area.exited(OTHER)
    assert give_up(trainer, clock, 700) == []
    assert trainer.due() == {}
