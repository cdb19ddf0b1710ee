"""`catalog sync` as a person calls it, and what the uploader adds by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from deltalake import DeltaTable

from fuse_ckpt.model import Metadata, Replication
from fuse_ckpt.session.pace import Left, Pace
from fuse_ckpt.session.uploader import Uploader
from tests.sharing.careless import Careless, careless_store
from tests.transfer.seaweed import BUCKET, Seaweed


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[Careless]:
    with careless_store(tmp_path) as found:
        yield found


@pytest.fixture
def lake(program: Any, shelf: Any, tmp_path: Path) -> Any:
    """A directory that is attached, and that the job copies to."""
    (tmp_path / "archive").mkdir()
    assert program("storage", "create", "lake", "--provider", "file", "--root", str(tmp_path / "archive")).code == 0
    assert program("storage", "attach", "lake").code == 0
    shelf.store.ensure_job("digits", 1)
    shelf.store.replicate("digits", Replication("lake"))
    return program


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "archive/fuse-ckpt/catalog"


def steps(there: Path) -> list[int]:
    found = DeltaTable(there.as_uri()).scan(columns=["step"]).read_all()
    return sorted(found.column("step").to_pylist())


def save(shelf: Any, step: int) -> Any:
    return shelf.put(f"checkpoint-{step}", {"a": str(step).encode()}, metadata=Metadata(step=step))


def test_rows_come_stay_and_go_with_what_lies_there(lake: Any, shelf: Any, there: Path) -> None:
    assert lake("catalog", "sync").out == f"{there.as_uri()}: made, 0 rows\n"
    first, _ = save(shelf, 1), save(shelf, 2)
    assert "nothing has changed, 0 rows" in lake("catalog", "sync").out, "nothing is copied yet"
    lake("storage", "sync", "lake")
    assert "2 added, 0 replaced, 0 removed, 2 rows now" in lake("catalog", "sync", "--storage-provider", "lake").out
    assert steps(there) == [1, 2]
    assert "nothing has changed, 2 rows" in lake("catalog", "sync", "--job", "digits").out
    shelf.store.delete([first.id])
    with shelf.store.collecting("a test"):
        shelf.store.collect([first.id])
    lake("storage", "sync", "lake")
    assert "0 added, 0 replaced, 1 removed, 1 row now" in lake("catalog", "sync").out
    assert steps(there) == [2]


def test_what_was_lost_is_said_and_made_anew(lake: Any, shelf: Any, there: Path) -> None:
    save(shelf, 1)
    lake("storage", "sync", "lake")
    lake("catalog", "sync")
    for path in there.glob("*.parquet"):
        path.unlink()
    said = lake("catalog", "sync")
    assert (said.code, said.err.count("\n"), "fuse-ckpt catalog sync --rebuild" in said.err) == (4, 1, True), said
    assert lake("catalog", "sync", "--rebuild").out.endswith("made, 1 row\n")
    assert steps(there) == [1]


def test_without_the_extra_it_says_what_to_install(lake: Any, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    said = lake("catalog", "sync")
    assert (said.code, said.err) == (1, "The catalog needs deltalake: pip install 'fuse-ckpt[catalog]'.\n")
    assert not there.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--storage-provider", "sea"), 3, "Unknown storage connection: sea"),
        (("--storage-provider", "other"), 2, "storage attach other"),
        (("--job", "never"), 3, "Unknown training job: never"),
        (("--job", "digits", "--rebuild"), 2, "leave out --job"),
        (("--job", ""), 3, "Unknown training job"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    lake: Any, tmp_path: Path, there: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    lake("storage", "create", "other", "--provider", "file", "--root", str(tmp_path))
    said = lake("catalog", "sync", *arguments)
    assert (said.code, said.err.count("\n"), said.out) == (code, 1, ""), said
    assert words in said.err
    assert not there.exists()


def test_which_object_store_is_asked_for_where_it_is_not_plain(
    program: Any, lake: Any, shelf: Any, tmp_path: Path
) -> None:
    lake("storage", "create", "other", "--provider", "file", "--root", str(tmp_path / "archive"))
    lake("storage", "attach", "other", "--path", "elsewhere")
    said = lake("catalog", "sync")
    assert (said.code, "(lake, other): say --storage-provider NAME" in said.err) == (2, True), said
    lake("storage", "detach", "lake")
    lake("storage", "detach", "other")
    assert "storage attach NAME first" in lake("catalog", "sync").err


def test_a_store_that_is_not_there_has_no_catalog(program: Any) -> None:
    assert program("catalog", "sync").code == 2
    assert program("catalog", "sync", "--storage-provider", "lake").code == 3


def test_nothing_of_the_environment_mixes_with_a_file_of_credentials(
    program: Any, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--endpoint", seaweed.endpoint, "--bucket", BUCKET, "--credentials-file", str(seaweed.admin)]
    assert program("storage", "create", "sea", "--provider", "s3", *given).code == 0
    assert program("storage", "attach", "sea", "--path", f"{BUCKET}/cli/catalog").code == 0
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-another-account")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    said = program("catalog", "sync")
    assert (said.code, said.out) == (0, f"s3://{BUCKET}/cli/catalog/catalog: made, 0 rows\n"), said
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "nothing has changed" in program("catalog", "sync").out


def test_an_object_store_that_is_gone_is_said_as_ever(lake: Any, tmp_path: Path) -> None:
    (tmp_path / "archive").rename(tmp_path / "away")
    said = lake("catalog", "sync", "--patience", "0.1")
    assert (said.code, said.err.count("\n"), "the directory is not there" in said.err) == (1, 1, True), said


def ended(uploader: Uploader) -> list[int]:
    """How the processes that it has started have ended."""
    return [process.wait(60) for process in uploader._lines["lake"].rows.processes]


def test_the_uploader_adds_rows_where_somebody_has_made_a_catalog(lake: Any, shelf: Any, there: Path) -> None:
    save(shelf, 1)
    one = Uploader(shelf.store, {}, Pace(None, Event()))
    while one._turn():
        pass
    assert not there.exists()
    assert one._lines["lake"].rows.processes == [], "nobody has asked for one: no process was started"
    one._lines["lake"]._lock.close()  # type: ignore[union-attr]
    lake("catalog", "sync")
    save(shelf, 2)
    one = Uploader(shelf.store, {}, Pace(None, Event()))
    while one._turn():
        pass
    assert ended(one) == [0]
    assert steps(there) == [1, 2]
    assert "nothing has changed, 2 rows" in lake("catalog", "sync").out


def test_rows_that_wait_when_the_uploader_ends_are_added_all_the_same(lake: Any, shelf: Any, there: Path) -> None:
    lake("catalog", "sync")
    stop = Event()
    one = Uploader(shelf.store, {}, Pace(None, stop))
    save(shelf, 1)
    assert one._turn()
    save(shelf, 2)
    assert one._turn(), "the second waits: the first was just now"
    stop.set()
    with pytest.raises(Left):
        one.run()
    assert set(ended(one)) == {0}
    assert steps(there) == [1, 2]


def test_a_catalog_that_cannot_be_written_is_in_nobodys_way(lake: Any, shelf: Any, there: Path) -> None:
    lake("catalog", "sync")
    for path in (there / "_delta_log").iterdir():
        path.write_bytes(b"what is this")
    found = save(shelf, 1)
    one = Uploader(shelf.store, {}, Pace(None, Event()))
    while one._turn():
        pass
    assert ended(one) == [0]
    assert shelf.store.outbox() == {}
    assert lake("checkpoint", "wait", found.id, "--status", "replicated").code == 0


def test_an_object_store_for_one_machines_use_has_one_writer_of_its_catalog(
    program: Any, careless: Careless, shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = careless.remote().connection
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1/")
    given = ["--endpoint", str(known.endpoint), "--bucket", BUCKET, "--credentials-file", str(known.credentials_file)]
    assert program("storage", "create", "careless", "--provider", "s3", *given).code == 0
    assert program("storage", "attach", "careless", "--exclusive").code == 0
    shelf.store.ensure_job("digits", 1)
    shelf.store.replicate("digits", Replication("careless"))
    save(shelf, 1)
    assert program("storage", "sync", "careless").code == 0
    assert program("catalog", "sync").out.endswith("made, 1 row\n")
    elsewhere = ("--store", str(tmp_path / "elsewhere"))
    assert program(*elsewhere, "storage", "create", "careless", "--provider", "s3", *given).code == 0
    assert program(*elsewhere, "storage", "attach", "careless").code == 0
    said = program(*elsewhere, "catalog", "sync")
    assert (said.code, said.err.count("\n"), "exclusive use" in said.err) == (1, 1, True), said


def test_another_process_at_it_is_waited_for_and_then_said(lake: Any, shelf: Any) -> None:
    lock = shelf.store.lock_catalog("lake")
    with lock:
        said = lake("catalog", "sync", "--patience", "0.5")
    assert (said.code, said.err.count("\n"), "Another process is writing the catalog" in said.err) == (5, 1, True)
