from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fuse_ckpt
from fuse_ckpt import errors
from fuse_ckpt.model import Metadata, Shape

ROOT = Path(__file__).parents[2]


def test_importing_the_package_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import fuse_ckpt; dir(fuse_ckpt)\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))\n"
        "fuse_ckpt.open_store; print('lmdb' in sys.modules, {'rich', 'click', 'trio', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "fuse_ckpt\nTrue set()\n"


def test_the_package_has_the_public_names_and_no_others() -> None:
    assert set(fuse_ckpt.__all__) <= set(dir(fuse_ckpt))
    for name in fuse_ckpt.__all__:
        assert getattr(fuse_ckpt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fuse_ckpt.nothing  # noqa: B018


@pytest.fixture
def store(shelf: Any) -> Any:
    """An open store; the shelf must have been filled before."""

    def opened() -> fuse_ckpt.CheckpointStore:
        shelf.close()
        return fuse_ckpt.open_store(shelf.root)

    return opened


def test_a_store_lists_what_can_be_used_oldest_first(shelf: Any, store: Any) -> None:
    first = shelf.put()
    torn = shelf.put("torn.pt", failure="torn")
    gone = shelf.put("gone.pt")
    shelf.store.delete([gone.id])
    other = shelf.put("other.pt", job="other")
    with store() as opened:
        assert opened.jobs == ["digits", "other"]
        assert [one.id for one in opened.list()] == [first.id, other.id]
        assert [one.id for one in opened.list("digits")] == [first.id]
        assert [one.id for one in opened.list(status=None)] == [first.id, torn.id, other.id]
        assert [one.id for one in opened.list(status="failed")] == [torn.id]
        assert [one.id for one in opened.list(status="deleted")] == [gone.id]
        assert [one.id for one in opened.list(name="o*.pt")] == [other.id]
        with pytest.raises(errors.UnknownJob):
            opened.list("nobody")
        with pytest.raises(ValueError, match="whatever"):
            opened.list(status="whatever")


def test_a_checkpoint_tells_what_is_known_of_it(shelf: Any, store: Any) -> None:
    parent = shelf.put("parent.pt")
    said = Metadata(120, 0.25, 0.5, "Llama", "5.1", inference_ready=True, resumable=True, notes=("a note",))
    found = shelf.put(
        *("checkpoint-120", {"a/b.bin": b"12345", "c": b""}),
        shape=Shape.DIRECTORY,
        metadata=said,
        parent=parent.id,
        links={"latest": "a"},
    )
    with store() as opened:
        one = opened.get("digits:best")
        assert (one.id, one.job, one.name, one.ordinal, one.status) == (
            *(found.id, "digits", "checkpoint-120", 1, "available"),
        )
        assert one.created == datetime(2025, 6, 5, 9, 7, 43, 816000, UTC)
        assert (one.size, one.step, one.train_loss, one.eval_loss) == (5, 120, 0.25, 0.5)
        assert (one.parent, one.tags, one.pinned, one.failure) == (parent.id, (), False, None)
        assert one.metadata["model"] == "Llama"
        assert one.metadata["resumable"] is True
        assert one.metadata["notes"] == ("a note",)
        assert [(file.path, file.size) for file in one.files] == [("a/b.bin", 5), ("c", 0)]
        assert one.files[0].modified == one.created
        assert one == opened.get(found.id[-8:])
        assert len({one, opened.get(one), opened.get(parent.id)}) == 2
        assert one.id in repr(one)


def test_a_reference_is_resolved_as_on_the_command_line(shelf: Any, store: Any) -> None:
    first, second = shelf.put(), shelf.put(files={"ckpt.pt": b"2"})
    with store() as opened:
        assert opened.resolve("digits:latest") == opened.resolve("digits/ckpt.pt") == second.id
        assert opened.resolve("digits/ckpt.pt@1") == first.id
        assert opened.resolve(opened.get(first.id)) == first.id
        with pytest.raises(errors.UnknownCheckpoint):
            opened.get("digits/none")
        with pytest.raises(errors.InvalidReference):
            opened.get(first.id[:4])


def test_files_are_opened_by_name_and_the_only_one_without(shelf: Any, store: Any) -> None:
    flat = shelf.put(files={"ckpt.pt": b"flat"})
    many = shelf.put("d", {"x/one": b"1", "two": b"22"}, shape=Shape.DIRECTORY)
    with store() as opened:
        with opened.open(flat.id) as file:
            assert file.read() == b"flat"
            file.seek(1)
            assert file.read(2) == b"la"
            assert not file.writable()
        with opened.open("digits/d", "x/one") as file:
            assert file.read() == b"1"
        assert opened.path(many.id, "two").read_bytes() == b"22"
        for asked in ({}, {"file": "three"}, {"file": "x"}, {"file": "../ckpt.pt"}):
            with pytest.raises(errors.UnknownFile, match="x/one, two"):
                opened.open(many.id, **asked)


def test_an_open_file_outlives_its_checkpoint_and_its_store(shelf: Any, store: Any) -> None:
    found = shelf.put(files={"ckpt.pt": b"kept"})
    with store() as opened:
        file = opened.open(found.id)
    shelf.store.delete([found.id])
    assert file.read() == b"kept"
    file.close()


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_bytes_that_are_not_whole_are_not_handed_out(shelf: Any, store: Any, damage: str) -> None:
    found = shelf.put(files={"ckpt.pt": b"whole"})
    blob = shelf.store.blob_path(shelf.store.manifest(found.id).entries[0].digest)
    if damage == "missing":
        blob.unlink()
    else:
        blob.chmod(0o600)
        blob.write_bytes(b"who")
    with store() as opened:
        for take in (opened.open, opened.path):
            with pytest.raises(errors.CorruptBlob, match=r"ckpt\.pt"):
                take(found.id)


def test_a_lease_keeps_a_checkpoint_from_being_deleted(shelf: Any, store: Any) -> None:
    found = shelf.put()
    command = [sys.executable, "-m", "fuse_ckpt", "--store", str(shelf.root), "checkpoint", "delete", found.id, "--yes"]

    def delete() -> int:
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True).returncode

    with store() as opened:
        with opened.lease("digits:latest") as held:
            assert held.id == found.id
            assert delete() == 5
        assert delete() == 0
        with pytest.raises(errors.UnknownCheckpoint), opened.lease(held):
            raise AssertionError


def test_fetch_waits_for_the_disk_where_that_is_asked_for(
    shelf: Any, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put("d", files={"x": b"1"})
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    with store() as opened:
        opened.fetch("digits/d", tmp_path / "a")
        opened.fetch("digits/d", tmp_path / "b", durable=True)
    assert [Path(path).parent.name.partition(".")[0] for path in synced if path.endswith("/x")] == ["b"]


def test_fetch_copies_the_files(shelf: Any, store: Any, tmp_path: Path) -> None:
    shelf.put("d", {"x/one": b"1", "two": b"22"}, shape=Shape.DIRECTORY)
    with store() as opened:
        target = opened.fetch("digits/d", tmp_path / "out", include=["x/*"])
        assert target == tmp_path / "out"
        assert [path.name for path in target.rglob("*") if path.is_file()] == ["one"]
        with pytest.raises(errors.UsageError):
            opened.fetch("digits/d", str(target))


def test_opening_it_again_is_no_error_and_each_closes_its_own(shelf: Any, store: Any) -> None:
    found = shelf.put()
    first, second = store(), fuse_ckpt.open_store(str(shelf.root))
    view = first.get(found.id)
    first.close()
    first.close()
    assert second.list()[0].files == second.get(view).files
    for use in (first.list, lambda: view.files, lambda: first.jobs, lambda: first.open(found.id)):
        with pytest.raises(errors.StoreUnusable, match="closed"):
            use()
    assert "closed" in repr(first)
    assert "ckpt.pt" in view._repr_html_()  # what is known without the store
    second.close()
    shelf.store.checkpoint(found.id)  # nobody in this process has it open any more


def test_a_store_that_is_forgotten_is_closed(shelf: Any, store: Any) -> None:
    found = shelf.put()
    assert [one.id for one in store().list()] == [found.id]
    shelf.store.checkpoint(found.id)


def test_threads_share_a_store(shelf: Any, store: Any) -> None:
    found = [shelf.put(f"{n}.pt", {"a": bytes([n])}) for n in range(5)]
    wrong: list[object] = []

    def work() -> None:
        try:
            for n, one in enumerate(found):
                with opened.open(one.id) as file, fuse_ckpt.open_store(shelf.root) as again:
                    if file.read() != bytes([n]) or len(again.list()) != 5:
                        wrong.append(one)
        except BaseException as error:
            wrong.append(error)

    with store() as opened:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_store_goes_on_in_a_forked_child_and_in_its_parent(shelf: Any, store: Any) -> None:
    found = shelf.put(files={"ckpt.pt": b"whole"})
    code = f"""
import os, fuse_ckpt
store = fuse_ckpt.open_store({str(shelf.root)!r})
one = store.get("{found.id}")
child = os.fork()
if child == 0:
    with store.open(one) as file, fuse_ckpt.open_store({str(shelf.root)!r}) as again, store.lease(one):
        print(file.read(), len(store.list()), len(again.list()), len(one.files), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(store.list()), store.open(one).read())
"""
    shelf.close()
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("b'whole' 1 1 1\n0 1 b'whole'\n", "")


def test_a_fork_while_another_thread_reads_does_not_hang(shelf: Any, store: Any) -> None:
    shelf.put()
    code = f"""
import os, threading, fuse_ckpt
store = fuse_ckpt.open_store({str(shelf.root)!r})
done = threading.Event()
def read():
    while not done.is_set():
        store.list()
        fuse_ckpt.open_store({str(shelf.root)!r}).close()
threads = [threading.Thread(target=read) for _ in range(3)]
[thread.start() for thread in threads]
codes = set()
for _ in range(30):
    child = os.fork()
    if child == 0:
        os._exit(len(store.list()))
    codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
print(codes)
"""
    shelf.close()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("{1}\n", "")


def test_a_store_and_its_checkpoints_travel_to_another_process(shelf: Any, store: Any) -> None:
    found = shelf.put(files={"ckpt.pt": b"whole"})
    with store() as opened:
        again, one = pickle.loads(pickle.dumps((opened, opened.get(found.id))))
        assert (one.id, [file.path for file in one.files]) == (found.id, ["ckpt.pt"])
        assert again.list() == opened.list()
        again.close()


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.StoreUnusable, match="There is no store"):
        fuse_ckpt.open_store(tmp_path / "none")
    monkeypatch.setenv("FUSE_CKPT_STORE", str(tmp_path / "other"))
    with pytest.raises(errors.StoreUnusable, match="other"):
        fuse_ckpt.open_store()
    assert list(tmp_path.iterdir()) == []


class Page(HTMLParser):
    """The tags and the text of a page that is well formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


HOSTILE = "<script>alert(1)</script>&\"'\x1b[2J\n\udcff"
WRITTEN = r"<script>alert(1)</script>&\"'\x1b[2J\x0a\xff".replace(r"\"", '"')


def test_a_notebook_shows_a_checkpoint_and_escapes_all_that_it_says(shelf: Any, store: Any) -> None:
    found = shelf.put(
        *(HOSTILE, {f"d/{HOSTILE}": b"1"}),
        shape=Shape.DIRECTORY,
        failure=HOSTILE,
        metadata=Metadata(7, 0.125, model=HOSTILE, version="5"),
    )
    with store() as opened:
        page = Page(opened.get(found.id)._repr_html_())
        table = Page(opened.list(status=None)._repr_html_())
    assert set(page.tags) == {"table", "tr", "th", "td", "thead", "tbody"}
    assert set(table.tags) == {"table", "tr", "th", "td", "thead", "tbody"}
    assert {WRITTEN, f"d/{WRITTEN}", f"failed: {WRITTEN}", f"digits/{WRITTEN}@1"} <= set(page.text)
    assert {"id", found.id, "step", "7", "train loss", "0.125", "1 byte", "2025-06-05 09:07:43 UTC"} <= set(page.text)
    assert {found.id, f"{WRITTEN}@1", "failed"} <= set(table.text)


def test_a_notebook_is_not_flooded(shelf: Any, store: Any) -> None:
    found = shelf.put("d", {f"{n:03}": b"x" for n in range(30)}, shape=Shape.DIRECTORY)
    with store() as opened:
        one = opened.get(found.id)
        page = Page(one._repr_html_())
        assert page.tags.count("tbody") == 1
        assert "… 10 more files" in page.text
        table = Page(fuse_ckpt.Checkpoints([one] * 250)._repr_html_())
        assert table.tags.count("tr") == 201
        assert "… and 50 older ones" in table.text


def test_a_checkpoint_is_a_value(shelf: Any, store: Any) -> None:
    found = shelf.put()
    with store() as opened:
        one = opened.get(found.id)
        with pytest.raises(AttributeError):
            one.name = "other"


def test_the_examples_of_the_documentation_run(shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.save({"w": torch.zeros(3)}, tmp_path / "model.pt")
    for loss in (0.5, 0.25):
        said = Metadata(step=1, train_loss=loss, eval_loss=loss, weights=True)
        shelf.put("d.pt", {"model.pt": (tmp_path / "model.pt").read_bytes()}, shape=Shape.DIRECTORY, metadata=said)
    shelf.close()
    monkeypatch.setenv("FUSE_CKPT_STORE", str(shelf.root))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), "api.md", "exec"), names)
    assert names["best"].eval_loss == 0.25
    assert torch.equal(names["weights"]["w"], torch.zeros(3))
    assert (tmp_path / "exported/model.pt").exists()
