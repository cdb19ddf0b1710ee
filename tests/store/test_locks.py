from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from fuse_ckpt.errors import InvalidJobName, JobMounted
from fuse_ckpt.store import Store, locks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


def test_two_holders_of_one_process_exclude_each_other(path: Path) -> None:
    with locks.exclusive(path):
        assert locks.try_exclusive(path) is None
    with locks.exclusive(path) as again:
        assert again.path == path


def test_shared_locks_go_together_and_keep_an_exclusive_one_out(path: Path) -> None:
    with locks.shared(path), locks.shared(path):
        assert locks.try_exclusive(path) is None


def test_asking_whether_a_lock_is_held_makes_no_file(path: Path) -> None:
    assert not locks.is_held(path)
    assert not path.exists()


def test_closing_a_lock_twice_closes_nobody_elses_descriptor(path: Path) -> None:
    lock = locks.exclusive(path)
    lock.close()
    with locks.exclusive(path):
        lock.close()
        assert locks.is_held(path)


def test_who_waited_for_a_lock_whose_file_was_removed_holds_the_new_file(path: Path) -> None:
    first = locks.exclusive(path)
    got: list[locks.Lock] = []
    waiter = Thread(target=lambda: got.append(locks.exclusive(path)))
    waiter.start()
    path.unlink()
    first.close()
    waiter.join(10)
    assert locks.is_held(path)
    got[0].close()


def test_the_second_daemon_of_a_job_is_told_where_the_first_one_mounts(store: Store) -> None:
    with store.lock_job("job") as lock:
        lock.note("a longer text than the next")
        lock.note("/mnt/here")
        assert store.job_locked("job")
        assert store.job_note("job") == "/mnt/here"
        with pytest.raises(JobMounted, match="at /mnt/here:"):
            store.lock_job("job")


def test_a_freed_job_can_be_locked_again_and_has_no_note(store: Store) -> None:
    with store.lock_job("job") as lock:
        lock.note("/mnt/here")
    assert not store.job_locked("job")
    assert store.job_note("job") == ""
    with store.lock_job("job"), pytest.raises(JobMounted, match=r"mounted already: umount"):
        store.lock_job("job")


def test_jobs_do_not_lock_each_other(store: Store) -> None:
    with store.lock_job("one"), store.lock_job("two"):
        assert not store.job_locked("three")


def test_waiting_for_a_job_ends_at_its_time(store: Store) -> None:
    assert store.wait_unlocked("job", 0)
    with store.lock_job("job"):
        assert not store.wait_unlocked("job", 0)


def test_a_lock_cannot_lie_outside_the_store(store: Store) -> None:
    with pytest.raises(InvalidJobName):
        store.lock_job("../../job")


def test_a_forked_child_holds_no_lease_of_its_parent(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from fuse_ckpt.store import locks
path = Path(sys.argv[1]) / "lease"
lease = locks.lease(path, "id", "the parent")
heard, tell = os.pipe()
if (child := os.fork()) == 0:
    lease.close()
    print(locks.holders(path), flush=True)
    os.write(tell, b".")
    os.read(0, 1)
    os._exit(0)
os.read(heard, 1)
lease.close()
print(locks.try_exclusive(path) is not None, flush=True)
os.waitpid(child, 0)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        said = {parent.stdout.readline(), parent.stdout.readline()}
        parent.stdin.write(".")
    assert said == {"the parent\n", "True\n"}


def test_a_forked_child_holds_none_of_its_parents_locks(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from fuse_ckpt.store import locks
path = Path(sys.argv[1])
held, kept = locks.exclusive(path / "one"), locks.exclusive(path / "other")
told, tell = os.pipe()
heard, hear = os.pipe()
child = os.fork()
if child == 0:
    os.write(hear, b".")
    held.close()  # a descriptor that is another file's by now must not be closed
    os.read(told, 1)
    print(locks.is_held(path / "one"), locks.is_held(path / "other"), flush=True)
    os._exit(0)
os.read(heard, 1)
held.close()
again = locks.try_exclusive(path / "one")
print(again is not None, flush=True)
os.write(tell, b".")
os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "True\nTrue True\n"


def test_of_locks_that_a_read_only_disk_has_no_files_for_none_keeps_anybody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_directory(path: Path, how: int) -> int:  # as on such a disk
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)

    monkeypatch.setattr(locks, "_open_file", open_directory)
    with locks.exclusive(tmp_path / "use-1"):
        for name in ("gc", "use-2"):
            taken = locks.try_exclusive(tmp_path / name)
            assert taken is not None
            taken.close()
        assert not locks.is_held(tmp_path / "job-x")
