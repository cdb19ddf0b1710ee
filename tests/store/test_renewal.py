"""The index is opened anew now and then, so that its map does not count as the daemon's memory for ever."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from fuse_ckpt.model import Checkpoint
from fuse_ckpt.store import Layout, Store, index, locks

Save = Callable[..., Checkpoint]


def mapped(name: str) -> int:
    """KiB of the files called `name` that are in this process's memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(f"/{name}")
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


ADD_JOBS = """
import sys
from pathlib import Path
from fuse_ckpt.store import Store, index
index.RENEWAL = 2
with Store.open(Path(sys.argv[1])) as store:
    for name in sys.argv[2:]:
        store.ensure_job(name, 1)
"""


def test_two_processes_see_each_others_commits_across_renewals(
    root: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "RENEWAL", 2)
    with Store.open(root) as store:
        jobs, saved = ["job"], []
        for number in range(3):
            saved += [save(store, "a.pt", {"a.pt": b"%d %d" % (number, version)}).id for version in range(3)]
            before, new = store.generation(), [f"n{number}-{of}" for of in range(3)]
            subprocess.run([sys.executable, "-c", ADD_JOBS, str(root), *new], check=True)
            jobs += new
            assert store.generation() > before
            assert [job.name for job in store.jobs()] == sorted(jobs)
            assert [found.id for found in store.checkpoints()] == saved
        assert store.verify() == []


def test_threads_read_while_another_renews(store: Store, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "RENEWAL", 1)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(300):
                store.checkpoints()
                store.generation()
        except BaseException as exc:
            failures.append(exc)

    readers = [Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(50):
        save(store, "a.pt", {"a.pt": b"%d" % number})
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(store.checkpoints()) == 50


def test_after_a_recovery_nothing_of_the_index_is_held_in_memory(store: Store, save: Save) -> None:
    for number in range(300):
        save(store, f"step_{number}.pt", {"x" * 200: b"%d" % number})
    store.checkpoints()
    before = mapped("data.mdb")
    store.recover()
    assert 0 <= mapped("data.mdb") < before / 2
    assert len(store.checkpoints()) == 300


def test_a_store_is_opened_while_another_reads_and_opening_writes_nothing(root: Path, save: Save) -> None:
    with Store.open(root) as store:
        found = save(store, "x", {"a": b"1"})
    data = root / "index" / "data.mdb"
    before = (data.read_bytes(), data.stat().st_mtime_ns)
    seen: list[str] = []

    def look() -> None:
        with Store.open(root, create=False) as store:
            seen.extend(one.id for one in store.checkpoints())

    with locks.shared(Layout(root).lock("index")):
        thread = Thread(target=look)
        thread.start()
        thread.join(20)
        assert seen == [found.id], "it does not wait for who reads"
    thread.join()
    assert (data.read_bytes(), data.stat().st_mtime_ns) == before
