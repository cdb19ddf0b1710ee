"""A file that comes late amends the checkpoint that was just made, or begins a version of its own."""

from __future__ import annotations

import json
import os

import pytest
import trio

from fuse_ckpt.model import Checkpoint, State
from fuse_ckpt.staging import Committer
from fuse_ckpt.staging.recent import PROVISIONAL
from tests.staging.conftest import Run
from tests.staging.test_committer import later, step
from tests.staging.trainer import OTHER, UNSEEN, Trainer, torch_zip


def marked(trainer: Trainer, name: str = "checkpoint-1") -> None:
    step(trainer, name)
    trainer.save(f"{name}/trainer_state.json", b'{"log_history": []}')


def heads(trainer: Trainer) -> list[tuple[str, int, int, str]]:
    """NAME, version, revision and state of each checkpoint, oldest first."""
    return [(one.name, one.ordinal, one.revision, str(one.state)) for one in trainer.store.checkpoints("job")]


def only(trainer: Trainer) -> Checkpoint:
    (one,) = trainer.store.checkpoints("job")
    return one


def test_a_slow_ranks_file_is_added_under_the_same_id_and_time(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        marked(trainer)
        await later(2)
        first = only(trainer)
        await later(20)
        trainer.save("checkpoint-1/rng_state_1.pth", torch_zip(), task=OTHER)
        await later(6)
        after = only(trainer)
        assert (after.id, after.created_ns, after.committed_ns) == (first.id, first.created_ns, first.committed_ns)
        assert (after.revision, after.files) == (2, 3)
        assert trainer.checkpoints()["checkpoint-1@1"].keys() == {"weights", "trainer_state.json", "rng_state_1.pth"}
        assert (committer.statistics.committed, committer.statistics.amended) == (1, 1)
        assert os.listdir(trainer.store.layout.pending("job")) == []
        assert trainer.store.verify() == []

    run(story)


def test_what_comes_after_thirty_seconds_is_a_version_of_its_own(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        await later(1.1)
        await later(PROVISIONAL + 1)
        trainer.save("checkpoint-1/rng_state_1.pth", torch_zip())
        await later(6)
        assert heads(trainer) == [("checkpoint-1", 1, 1, "available"), ("checkpoint-1", 2, 1, "available")]
        assert trainer.checkpoints()["checkpoint-1@1"].keys() == {"weights", "trainer_state.json"}
        assert len(trainer.checkpoints()["checkpoint-1@2"]) == 3

    run(story)


def test_a_file_that_is_opened_in_time_and_closed_much_later_is_not_late(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        await later(2)
        trainer.start("checkpoint-1/optimizer_1.pt", torch_zip())
        await later(300)
        trainer.close("checkpoint-1/optimizer_1.pt")
        await later(40)
        assert heads(trainer) == [("checkpoint-1", 1, 2, "available")]

    run(story)


def test_each_amendment_counts_from_the_first_commit(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        await later(2)
        for number in range(3):
            await later(9)
            trainer.save(f"checkpoint-1/rank{number}", b"late")
            await later(6)
        assert heads(trainer) == [("checkpoint-1", 1, 3, "available"), ("checkpoint-1", 2, 1, "available")]
        assert len(trainer.checkpoints()["checkpoint-1@2"]) == 5

    run(story)


def rewrite(trainer: Trainer) -> None:
    trainer.rewrite("checkpoint-1/weights", b"other bytes")


def replace(trainer: Trainer) -> None:
    trainer.save("checkpoint-1/x.tmp", b"other bytes")
    trainer.rename("checkpoint-1/x.tmp", "checkpoint-1/weights")


def replace_by_the_same(trainer: Trainer) -> None:
    trainer.save("checkpoint-1/x.tmp", b"checkpoint-1")
    trainer.rename("checkpoint-1/x.tmp", "checkpoint-1/weights")


def remove(trainer: Trainer) -> None:
    trainer.remove("checkpoint-1/weights")


@pytest.mark.parametrize("change", [rewrite, replace, replace_by_the_same, remove], ids=lambda change: change.__name__)
@pytest.mark.parametrize("added", [True, False])
def test_a_changed_member_is_a_version_whatever_is_added(run: Run, change: object, added: bool) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        await later(2)
        change(trainer)  # type: ignore[operator]
        if added:
            trainer.save("checkpoint-1/rank1", b"late")
        await later(40)
        if change is remove and not added:
            assert heads(trainer) == [("checkpoint-1", 1, 1, "available")]
            return
        assert heads(trainer) == [("checkpoint-1", 1, 1, "available"), ("checkpoint-1", 2, 1, "available")]
        assert trainer.checkpoints()["checkpoint-1@1"]["weights"] == b"checkpoint-1"

    run(story)


@pytest.mark.parametrize("rely", ["lease", "settle", "delete"])
def test_what_somebody_relies_on_gets_a_version_beside_it(run: Run, rely: str) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        await later(2)
        first = only(trainer)
        if rely == "lease":
            trainer.store.lease(first.id).close()
        elif rely == "settle":
            trainer.store.settle(first.id)
        else:
            trainer.store.delete([first.id])
        trainer.save("checkpoint-1/rank1", b"late")
        await later(6)
        expected = [("checkpoint-1", 1, 1, "available"), ("checkpoint-1", 2, 1, "available")]
        assert heads(trainer) == expected[rely == "delete" :]
        assert len(trainer.checkpoints()["checkpoint-1@2"]) == 3

    run(story)


def test_a_shard_that_was_missing_makes_it_available_under_the_same_id(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        index = json.dumps({"weight_map": {"a": "m-1", "b": "m-2"}}).encode()
        trainer.save("checkpoint-1/model.safetensors.index.json", index)
        trainer.save("checkpoint-1/m-1", b"shard")
        await committer.drain()  # as `checkpoint commit` does: a person was too quick
        first = only(trainer)
        assert (first.state, first.failure) == (
            State.FAILED, "checkpoint-1/model.safetensors.index.json names m-2, which is missing",
        )  # fmt: skip
        trainer.save("checkpoint-1/m-2", b"shard too")
        await later(6)
        assert heads(trainer) == [("checkpoint-1", 1, 2, "available")]
        assert (only(trainer).id, only(trainer).failure) == (first.id, None)

    run(story)


@pytest.mark.parametrize(("anew", "expected"), [(False, [(1, "failed")]), (True, [(1, "failed"), (2, "available")])])
def test_only_a_save_from_the_start_heals_what_a_killed_writer_left(
    run: Run, anew: bool, expected: list[tuple[int, str]]
) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/weights", b"first", task=OTHER)
        trainer.area.exited(OTHER, "its writer was killed by signal 9")
        await later(1)
        assert [(ordinal, state) for _, ordinal, _, state in heads(trainer)] == [(1, "failed")]
        if anew:
            trainer.rewrite("checkpoint-1/weights", b"second")
        trainer.save("checkpoint-1/trainer_state.json", b"{}")
        await later(6)
        assert [(ordinal, state) for _, ordinal, _, state in heads(trainer)] == expected

    run(story)


def test_what_comes_late_does_not_heal_what_was_found_to_be_damaged(run: Run) -> None:
    """A commit reads nothing again that is a blob already."""

    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        await later(2)
        store, first = trainer.store, only(trainer)
        flip = store.blob_path(store.manifest(first.id).entries[1].digest)
        flip.write_bytes(b"x" * flip.stat().st_size)
        store.mark_damaged(first.id, store.examine([first.id]).damage)
        trainer.save("checkpoint-1/rng_state_1.pth", torch_zip())
        await later(6)
        assert [(one.state, one.failure) for one in store.checkpoints("job")] == [
            (State.FAILED, "damaged in the store: 'weights'")
        ]

    run(story)


def test_more_files_of_a_failed_one_are_kept_for_salvage_under_its_id(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/a.pt", torch_zip()[:-20])
        await committer.drain()
        trainer.save("checkpoint-1/b.pt", torch_zip())
        await committer.drain()
        assert heads(trainer) == [("checkpoint-1", 1, 2, "failed")]
        assert len(trainer.checkpoints(State.FAILED)["checkpoint-1@1"]) == 2

    run(story)


def test_a_late_file_that_is_torn_does_not_spoil_what_is_whole(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        marked(trainer)
        await later(2)
        trainer.save("checkpoint-1/rng_state_1.pth", torch_zip()[:-20])
        await committer.drain()
        assert heads(trainer) == [("checkpoint-1", 1, 1, "available"), ("checkpoint-1", 2, 1, "failed")]

    run(story)


def test_what_comes_late_does_not_heal_a_writers_death(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.start("checkpoint-1/raw", b"half")
        trainer.close("checkpoint-1/raw", death="its writer was killed by signal 9")
        await committer.drain()
        trainer.save("checkpoint-1/rank1", b"late")
        await committer.drain()
        assert heads(trainer) == [("checkpoint-1", 1, 2, "failed")]
        await later(60)
        trainer.save("checkpoint-1/rank2", b"later")
        await committer.drain()
        assert heads(trainer)[1:] == [("checkpoint-1", 2, 1, "failed")]

    run(story)


def test_what_comes_late_does_not_heal_a_set_whose_writer_died_in_between(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/a", b"a", task=OTHER)
        trainer.area.exited(OTHER, "its writer was killed by signal 9")
        await later(0)
        assert heads(trainer) == [("checkpoint-1", 1, 1, "failed")]
        trainer.save("checkpoint-1/rank1", b"late")
        await committer.drain()
        assert heads(trainer) == [("checkpoint-1", 1, 2, "failed")]

    run(story)


def test_a_file_that_comes_while_the_first_is_committed_amends_it(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        trainer.rename("checkpoint-1", "checkpoint-2")  # due at once
        with trio.CancelScope() as scope:
            scope.cancel()
        trainer.save("checkpoint-2/rank1", b"late")
        await later(40)
        assert [one[:2] for one in heads(trainer)] == [("checkpoint-2", 1)]
        assert len(trainer.checkpoints()["checkpoint-2@1"]) == 3

    run(story)


def test_metadata_is_read_anew(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        await later(2)
        assert not only(trainer).metadata.resumable
        trainer.save("checkpoint-1/optimizer.pt", torch_zip())
        trainer.save("checkpoint-1/config.json", b'{"architectures": ["Net"]}')
        await later(6)
        assert (only(trainer).metadata.resumable, only(trainer).metadata.model) == (True, "Net")

    run(story)


def test_a_model_card_beside_the_root_checkpoint_is_added_once(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.save("config.json", b"{}")
        trainer.save("trainer_state.json", b'{"log_history": []}')
        await later(2)
        trainer.save("README.md", b"a card")
        await later(6)
        assert heads(trainer) == [("", 1, 2, "available")]
        trainer.rewrite("README.md", b"another")
        await later(60)
        assert heads(trainer) == [("", 1, 2, "available")], "it starts nothing by itself"
        assert trainer.checkpoints()["@1"]["README.md"] == b"a card"

    run(story)


def test_a_log_that_goes_on_in_a_unit_is_no_change_of_a_member(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/train.log", b"one line\n")
        trainer.save("checkpoint-1/weights", b"w")
        await later(6)
        trainer.rewrite("checkpoint-1/train.log", b"one line\ntwo lines\n")
        await later(60)
        assert heads(trainer) == [("checkpoint-1", 1, 1, "available")]

    run(story)


def test_a_log_that_went_on_does_not_keep_a_late_file_from_amending(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/train.log", b"one line\n")
        trainer.save("checkpoint-1/weights", b"w")
        await later(6)
        trainer.rewrite("checkpoint-1/train.log", b"one line\ntwo lines\n")
        trainer.save("checkpoint-1/rank1", b"late")
        await later(6)
        assert heads(trainer) == [("checkpoint-1", 1, 2, "available")]
        assert trainer.checkpoints()["checkpoint-1@1"]["train.log"] == b"one line\n"

    run(story)


def test_another_rank_of_a_set_of_flat_files_is_added(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.save("ep1-rank0.pt", torch_zip(b"0"))
        await later(6)
        trainer.save("ep1-rank1.pt", torch_zip(b"1"), task=UNSEEN)
        await later(31)
        assert heads(trainer) == [("ep1-rank0.pt", 1, 2, "available")]

    run(story)


def test_a_flat_file_is_never_amended(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.save("a.pt", torch_zip(b"0"))
        await later(1)
        trainer.rewrite("a.pt", torch_zip(b"1"))
        await later(1)
        assert heads(trainer) == [("a.pt", 1, 1, "available"), ("a.pt", 2, 1, "available")]

    run(story)


def test_a_file_in_the_place_of_a_directory_is_a_version(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        marked(trainer)
        trainer.mkdir("checkpoint-1/empty")
        await later(2)
        (trainer.work / "checkpoint-1" / "empty").rmdir()
        trainer.area.removed("checkpoint-1/empty", trainer.task)
        trainer.save("checkpoint-1/empty", b"now a file")
        await later(6)
        assert heads(trainer) == [("checkpoint-1", 1, 1, "available"), ("checkpoint-1", 2, 1, "available")]
        assert trainer.checkpoints()["checkpoint-1@2"]["empty"] == b"now a file"

    run(story)
