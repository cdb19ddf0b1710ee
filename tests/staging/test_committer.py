"""The committer under a clock that jumps: what becomes a checkpoint, in which order, and what a failure leaves."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fuse_ckpt import faults
from fuse_ckpt.model import State
from fuse_ckpt.staging import Committer, load_all, why_stuck
from fuse_ckpt.staging.committer import RETRY_COMMIT
from fuse_ckpt.staging.journal import Sealed
from fuse_ckpt.store import Store
from tests.staging.conftest import Run
from tests.staging.trainer import JOB, OTHER, UNSEEN, Trainer, key_of, torch_zip


def fails(error: Exception, prefix: str = "") -> Callable[[str], None]:
    """A hook that makes every fault point fail whose name begins with `prefix`."""

    def hook(point: str) -> None:
        if point.startswith(prefix):
            raise error

    return hook


def step(trainer: Trainer, name: str = "checkpoint-1") -> None:
    trainer.mkdir(name)
    trainer.save(f"{name}/weights", name.encode())


async def later(seconds: float) -> None:
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


def test_a_flat_file_is_committed_after_its_quiet_and_not_before(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.save("a.pt", torch_zip())
        await later(0.19)
        assert trainer.checkpoints() == {}
        await later(0.02)
        assert trainer.checkpoints() == {"a.pt@1": {"a.pt": torch_zip()}}

    run(story)


def test_commit_copies_no_byte_and_seals_the_inode(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        step(trainer)
        file = trainer.work / "checkpoint-1" / "weights"
        before = file.stat()
        await later(6)
        (one,) = trainer.store.checkpoints(JOB)
        (entry,) = trainer.store.manifest(one.id).entries
        assert os.path.samefile(trainer.store.blob_path(entry.digest), file)
        assert key_of(file) in trainer.area.sealed
        assert os.listdir(trainer.store.layout.pending(JOB)) == []
        after = file.stat()
        assert (before.st_mtime_ns, before.st_mode, before.st_size) == (after.st_mtime_ns, after.st_mode, after.st_size)
        assert after.st_nlink - trainer.area.sealed.hidden_links(key_of(file), after.st_nlink) == 1

    run(story)


def test_a_tokenizer_written_twice_within_one_save_is_one_checkpoint(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/tokenizer.json", b"{}")
        await later(0.5)
        trainer.rewrite("checkpoint-1/tokenizer.json", b'{"a": 1}')
        trainer.save("checkpoint-1/trainer_state.json", b"{}")
        await later(60)
        assert list(trainer.checkpoints()) == ["checkpoint-1@1"]
        assert trainer.checkpoints()["checkpoint-1@1"]["tokenizer.json"] == b'{"a": 1}'

    run(story)


def test_each_save_of_a_name_is_a_checkpoint_and_leaves_the_first_as_it_was(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        for n in range(3):
            trainer.rewrite("latest.pt", torch_zip(b"%d" % n)) if n else trainer.save("latest.pt", torch_zip(b"0"))
            await later(1)
        assert trainer.checkpoints() == {f"latest.pt@{n + 1}": {"latest.pt": torch_zip(b"%d" % n)} for n in range(3)}

    run(story)


def test_saves_faster_than_the_quiet_are_each_kept_in_their_order(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.save("a.pt", torch_zip(b"0"))
        for n in range(1, 4):
            trainer.rewrite("a.pt", torch_zip(b"%d" % n))
        await committer.drain()
        assert trainer.checkpoints() == {f"a.pt@{n + 1}": {"a.pt": torch_zip(b"%d" % n)} for n in range(4)}

    run(story)


def test_a_unit_removed_right_after_its_close_is_committed_whole(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        step(trainer)
        trainer.rmtree("checkpoint-1")
        await later(0)
        assert trainer.checkpoints() == {"checkpoint-1@1": {"weights": b"checkpoint-1"}}

    run(story)


def test_a_committed_unit_that_is_renamed_is_a_checkpoint_of_the_same_blobs(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        step(trainer)
        await committer.drain()
        trainer.rename("checkpoint-1", "checkpoint-2")
        await committer.drain()
        assert trainer.checkpoints() == {
            "checkpoint-1@1": {"weights": b"checkpoint-1"}, "checkpoint-2@1": {"weights": b"checkpoint-1"},
        }  # fmt: skip
        assert len(list(trainer.store.layout.blobs.glob("*/*"))) == 1

    run(story)


def test_an_uncommitted_unit_that_is_renamed_is_one_checkpoint(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        step(trainer, "checkpoint-1")
        trainer.rename("checkpoint-1", "checkpoint-2")
        await committer.drain()
        assert list(trainer.checkpoints()) == ["checkpoint-2@1"]

    run(story)


def test_a_hard_link_shares_the_blob_and_has_its_own_checkpoint(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.save("last.pt", torch_zip())
        trainer.link("last.pt", "best.pt")
        await committer.drain()
        assert set(trainer.checkpoints()) == {"last.pt@1", "best.pt@1"}
        file = trainer.work / "best.pt"
        links = file.stat().st_nlink
        assert links - trainer.area.sealed.hidden_links(key_of(file), links) == 2

    run(story)


def test_a_file_opened_by_another_units_name_while_a_seal_is_prepared_is_not_sealed(run: Run) -> None:
    """Its writer would write into a committed checkpoint: the draft that it was opened by is another one."""

    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.save("epoch-1.pt", torch_zip(b"first"))
        trainer.link("epoch-1.pt", "last.pt")
        key = key_of(trainer.work / "last.pt")
        prepare = trainer.area.prepare

        def opened_meanwhile(*arguments: Any) -> Sealed | None:
            sealed = prepare(*arguments)
            trainer.area.prepare = prepare  # type: ignore[method-assign]
            trainer.area.opened("last.pt", key, trainer.task, changed=False)
            return sealed

        trainer.area.prepare = opened_meanwhile  # type: ignore[method-assign, assignment]
        await later(2)
        assert trainer.checkpoints() == {}
        assert key not in trainer.area.sealed
        (trainer.work / "last.pt").write_bytes(torch_zip(b"second"))
        trainer.area.released(key, changed=True, names=["epoch-1.pt", "last.pt"])
        await later(2)
        assert trainer.checkpoints() == {
            "epoch-1.pt@1": {"epoch-1.pt": torch_zip(b"second")},
            "last.pt@1": {"last.pt": torch_zip(b"second")},
        }

    run(story)


def test_what_is_removed_while_its_seal_is_prepared_is_kept_and_holds_nothing_up(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The removal seals it first. That a thread then does not find it is no failure, and no reason to wait."""

    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.save("a.pt", torch_zip(b"first"))
        prepare = trainer.area.prepare

        def removed_meanwhile(*arguments: Any) -> Sealed | None:
            trainer.area.prepare = prepare  # type: ignore[method-assign]
            trainer.remove("a.pt")
            return prepare(*arguments)

        trainer.area.prepare = removed_meanwhile  # type: ignore[method-assign, assignment]
        await later(0.3)
        trainer.save("a.pt", torch_zip(b"second"))
        await later(0.3)
        assert trainer.checkpoints() == {
            "a.pt@1": {"a.pt": torch_zip(b"first")}, "a.pt@2": {"a.pt": torch_zip(b"second")}
        }  # fmt: skip
        assert [record for record in caplog.records if record.levelname == "WARNING"] == []

    run(story)


def test_equal_files_are_kept_once_and_only_the_blobs_inode_stays_sealed(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.save("a.pt", torch_zip())
        await committer.drain()
        trainer.save("b.pt", torch_zip())
        await committer.drain()
        assert set(trainer.checkpoints()) == {"a.pt@1", "b.pt@1"}
        assert len(list(trainer.store.layout.blobs.glob("*/*"))) == 1
        assert key_of(trainer.work / "a.pt") in trainer.area.sealed
        assert key_of(trainer.work / "b.pt") not in trainer.area.sealed
        assert (trainer.work / "b.pt").stat().st_nlink == 1

    run(story)


def test_an_incomplete_draft_waits_and_is_failed_at_the_end(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.save("a.pt", torch_zip()[:-30])
        await later(600)
        assert trainer.store.checkpoints(JOB) == []
        await committer.drain()
        assert trainer.checkpoints() == {}
        assert list(trainer.checkpoints(State.FAILED)) == ["a.pt@1"]
        (one,) = trainer.store.checkpoints(JOB)
        assert one.failure is not None
        assert "cut off" in one.failure
        assert (committer.statistics.committed, committer.statistics.failed) == (0, 1)
        assert trainer.store.latest(JOB) is None

    run(story)


def test_an_incomplete_draft_that_is_finished_is_committed(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/model.safetensors.index.json", b'{"weight_map": {"a": "shard"}}')
        await later(60)
        assert trainer.checkpoints() == {}
        trainer.save("checkpoint-1/shard")
        await later(60)
        assert list(trainer.checkpoints()) == ["checkpoint-1@1"]

    run(story)


def test_a_unit_is_committed_at_once_when_its_writer_has_exited(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as writer:
            trainer.mkdir("checkpoint-1")
            trainer.save("checkpoint-1/weights", task=writer.pid)
            await later(1)
            assert trainer.checkpoints() == {}
        # The exit comes from the real kernel, so it is waited for, not jumped to.
        while not trainer.checkpoints():
            await trio.lowlevel.checkpoint()
        assert trio.current_time() == pytest.approx(writer_deadline := trio.current_time())
        assert writer_deadline is not None

    run(story)


def test_drain_leaves_what_is_still_written(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        step(trainer)
        trainer.start("b.pt", torch_zip())
        await committer.drain()
        assert list(trainer.checkpoints()) == ["checkpoint-1@1"]
        trainer.close("b.pt")
        await committer.drain()
        assert list(trainer.checkpoints()) == ["checkpoint-1@1", "b.pt@1"]

    run(story)


def test_drain_does_not_wait_for_ever_for_a_descriptor_elsewhere(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.save("a.pt", torch_zip())
        fd = os.open(trainer.work / "a.pt", os.O_WRONLY)
        with trio.fail_after(60):
            await committer.drain()
        assert trainer.checkpoints() == {}
        os.close(fd)
        await later(2)
        assert list(trainer.checkpoints()) == ["a.pt@1"]

    run(story)


def test_drain_with_nothing_to_do_returns(run: Run) -> None:
    async def story(_: Trainer, committer: Committer) -> None:
        with trio.fail_after(1):
            await committer.drain()

    run(story)


def test_a_full_disk_keeps_the_draft_and_tries_again(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        step(trainer)
        with faults.install(fails(OSError(errno.ENOSPC, "No space left on device"), "adopt:link")):
            await later(6)
        assert trainer.checkpoints() == {}
        assert committer.statistics.stuck == 1
        assert "No space" in committer.statistics.last_error
        (directory,) = trainer.store.layout.pending(JOB).iterdir()
        assert (directory / "error").read_text() == "[Errno 28] No space left on device"
        assert key_of(trainer.work / "checkpoint-1" / "weights") in trainer.area.sealed
        await later(RETRY_COMMIT + 1)
        assert list(trainer.checkpoints()) == ["checkpoint-1@1"]
        assert committer.statistics.stuck == 0

    run(story)


@pytest.mark.parametrize("point", ["adopt:link", "adopt:dirsync", "publish:manifest", "publish:txn"])
def test_a_commit_that_fails_stops_no_other(run: Run, point: str, caplog: pytest.LogCaptureFixture) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        step(trainer)
        once = [OSError(errno.EIO, "the disk says no")]

        def hook(reached: str) -> None:
            if reached == point and once:
                raise once.pop()

        with faults.install(hook):
            await later(6)
            step(trainer, "checkpoint-2")
            await later(6)
        assert list(trainer.checkpoints()) == ["checkpoint-2@1"]
        (sealed,) = trainer.store.layout.pending(JOB).iterdir()
        assert (sealed / "journal.json").exists()
        assert "the disk says no" in (sealed / "error").read_text()
        assert sum("cannot commit" in record.message for record in caplog.records) == 1

    run(story)


def test_a_failed_fsync_is_believed_of_every_name_of_the_file(run: Run) -> None:
    """The kernel tells of it once: another draft's fsync of the same inode would say that all is well."""

    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.save("epoch-1.pt", torch_zip())
        trainer.link("epoch-1.pt", "last.pt")
        once = [OSError(errno.EIO, "the disk says no")]

        def hook(reached: str) -> None:
            if reached == "adopt:fsync" and once:
                raise once.pop()

        with faults.install(hook):
            await later(2)
        found = trainer.store.checkpoints(JOB)
        assert sorted((one.name, one.state) for one in found) == [
            ("epoch-1.pt", State.FAILED), ("last.pt", State.FAILED),
        ]  # fmt: skip
        for one in found:
            (entry,) = trainer.store.manifest(one.id).entries
            assert key_of(trainer.store.blob_path(entry.digest)) != key_of(trainer.work / "last.pt")
            assert one.failure == "epoch-1.pt could not be written to the disk: the disk says no"

    run(story)


def test_what_the_disk_cannot_write_twice_is_tried_again_and_stays_failed(run: Run) -> None:
    """Even where the note of it cannot be written, no later fsync is believed in this mount."""

    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.save("a.pt", torch_zip())
        with faults.install(fails(OSError(errno.EIO, "the disk says no"), "adopt:fsync")):
            await later(2)
            assert trainer.store.checkpoints(JOB) == []
            assert committer.statistics.stuck == 1
        (directory,) = trainer.store.layout.pending(JOB).iterdir()
        (directory / "unsynced").unlink()
        await later(RETRY_COMMIT + 1)
        (one,) = trainer.store.checkpoints(JOB)
        assert (one.state, one.failure) == (State.FAILED, "a.pt could not be written to the disk: the disk says no")

    run(story)


def test_what_the_disk_could_not_write_is_failed_in_the_next_mount_too(store: Store, run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.save("a.pt", torch_zip())
        with faults.install(fails(OSError(errno.EIO, "the disk says no"), "adopt:fsync")):
            await later(2)

    run(story)
    (sealed,) = load_all(store.layout.pending(JOB), clean=False)
    assert sealed.distrusted() == "a.pt could not be written to the disk: the disk says no"


@pytest.mark.parametrize("prefix", ["seal:linked", "adopt:", "publish:manifest"])
def test_a_bug_does_not_end_the_task(run: Run, prefix: str) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        step(trainer)
        with faults.install(fails(RuntimeError("a bug"), prefix)):
            await later(60)
        assert trainer.checkpoints() == {}
        step(trainer, "checkpoint-2")
        await later(60)
        assert "checkpoint-2@1" in trainer.checkpoints()

    run(story)


def test_why_a_draft_is_stuck_can_be_read(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        step(trainer)
        with faults.install(fails(OSError(errno.EIO, "no"), "publish:txn")):
            await committer.drain()
        (sealed,) = load_all(trainer.store.layout.pending(JOB), clean=False)
        assert why_stuck(sealed) == "[Errno 5] no"

    run(story)


def test_names_that_are_no_utf8_survive_the_commit(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save(os.fsdecode(b"checkpoint-1/caf\xe9"), b"data")
        trainer.symlink(os.fsdecode(b"\xff"), "checkpoint-1/points")
        await committer.drain()
        (one,) = trainer.store.checkpoints(JOB)
        entries = {os.fsencode(e.path): os.fsencode(e.target) for e in trainer.store.manifest(one.id).entries}
        assert entries == {b"caf\xe9": b"", b"points": b"\xff"}
        assert trainer.store.verify() == []

    run(story)


def test_pointers_are_kept_as_they_were_at_each_commit(run: Run) -> None:
    async def story(trainer: Trainer, committer: Committer) -> None:
        for n in (1, 2):
            step(trainer, f"global_step{n}")
            text = f"global_step{n}".encode()
            trainer.rewrite("latest", text) if n == 2 else trainer.save("latest", text)
            await committer.drain()
        kept = []
        for one in trainer.store.checkpoints(JOB):
            (companion,) = trainer.store.manifest(one.id).companions
            kept.append(trainer.store.blob_path(companion.digest).read_bytes())
        assert kept == [b"global_step1", b"global_step2"]

    run(story)


def test_writers_that_nobody_sees_wait_for_the_long_quiet(run: Run) -> None:
    async def story(trainer: Trainer, _: Committer) -> None:
        trainer.mkdir("checkpoint-1")
        trainer.save("checkpoint-1/a", task=UNSEEN)
        trainer.save("checkpoint-1/b", task=OTHER)
        await later(29)
        assert trainer.checkpoints() == {}
        await later(2)
        assert list(trainer.checkpoints()) == ["checkpoint-1@1"]

    run(story)
