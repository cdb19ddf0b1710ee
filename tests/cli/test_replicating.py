"""`storage attach`, `detach` and `sync`, and what listings say of copies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fuse_ckpt.model import Connection, Provider, Replication, Stage
from fuse_ckpt.session import attach, sync
from fuse_ckpt.store import Store
from tests.sharing.careless import Careless, careless_store
from tests.store.conftest import commit
from tests.transfer import rclone
from tests.transfer.seaweed import BUCKET, NOWHERE


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[Careless]:
    with careless_store(tmp_path) as found:
        yield found


@pytest.fixture
def lake(program: Any, tmp_path: Path) -> Any:
    """A connection to a directory."""
    (tmp_path / "archive").mkdir()
    made = program("storage", "create", "lake", "--provider", "file", "--root", str(tmp_path / "archive"))
    assert made.code == 0, made.err
    return program


def listed(program: Any, job: str = "digits") -> list[str]:
    return [row["replicated"] for row in json.loads(program("training", "checkpoints", job, "--json").out)]


def test_from_waiting_to_replicated_and_back_from_there(lake: Any, shelf: Any, tmp_path: Path) -> None:
    assert "nothing there is new here" in lake("storage", "attach", "lake").out
    shelf.put(files={"a": b"a"})
    assert listed(lake) == ["local"]
    shelf.store.replicate("digits", Replication("lake"))
    found = shelf.put(files={"a": b"aa"})
    assert listed(lake) == ["local", "waiting"]
    said = lake("storage", "sync", "lake")
    assert (said.code, said.out) == (0, "Copied 1 checkpoints (2 bytes) to lake, 0 there are new here\n")
    assert listed(lake) == ["local", "replicated"]
    assert lake("storage", "sync", "lake", "--job", "digits").out.startswith("Copied 1 checkpoints (1 byte)")
    assert listed(lake) == ["replicated", "replicated"]
    assert lake("checkpoint", "wait", found.id, "--status", "replicated").out == f"{found.id}\n"
    replica = json.loads(lake("checkpoint", "inspect", found.id, "--json").out)["status"]["replica"]
    assert (replica["storage"], replica["state"], replica["here"]) == ("lake", "replicated", True)
    shelf.store.evict([found.id])
    assert listed(lake) == ["replicated", "replicated, not here"]
    fetched = lake("checkpoint", "fetch", found.id, "--destination", str(tmp_path / "out"))
    assert (fetched.code, (tmp_path / "out/a").read_bytes()) == (0, b"aa")
    assert listed(lake) == ["replicated", "replicated"]


@pytest.mark.parametrize(
    ("stage", "more", "words"),
    [
        (Stage.UPLOADING, {"sent": 62, "size": 100}, "uploading 62 %"),
        (Stage.UPLOADING, {"sent": 100, "size": 100}, "uploading 99 %"),
        (Stage.UPLOADING, {"sent": 0, "size": 0}, "uploading 0 %"),
        (Stage.PARTIAL, {"nodes": 4, "parts": (0, 1, 3)}, "partial 3/4 (missing rank 2)"),
        (Stage.PARTIAL, {"nodes": 9, "parts": (0,)}, "partial 1/9 (missing ranks 1, 2, 3, 4, 5, …)"),
        (Stage.ABORTED, {"reason": "it stayed partial"}, "aborted"),
    ],
)
def test_how_a_copy_is(lake: Any, shelf: Any, stage: Stage, more: dict[str, Any], words: str) -> None:
    shelf.store.ensure_job("digits", 1)
    shelf.store.replicate("digits", Replication("lake"))
    found = shelf.put()
    shelf.store.note_replica(found.id, found, lambda now: replace(now, stage=stage, **more))
    said = lake("training", "checkpoints", "digits", "--wide", "--all") if more.get("nodes") else None
    assert said is None or said.rows[0][-1] == words
    if said is None:
        assert listed(lake) == [words]


def test_what_waits_is_in_stats(lake: Any, shelf: Any) -> None:
    lake("storage", "attach", "lake")
    shelf.store.ensure_job("digits", 1)
    shelf.store.replicate("digits", Replication("lake"))
    shelf.put(files={"a": b"abc"})
    (told,) = json.loads(lake("stats", "--json").out)["storage"]
    assert (told["name"], told["waiting"], told["waitingBytes"], told["problem"]) == ("lake", 1, 3, None)
    lines = lake("stats", "--prometheus").out.splitlines()
    assert 'fuse_ckpt_copies_waiting{storage="lake"} 1' in lines
    assert 'fuse_ckpt_copies_waiting_bytes{storage="lake"} 3' in lines


def test_leaving_asks_for_force_where_something_waits(lake: Any, shelf: Any) -> None:
    lake("storage", "attach", "lake")
    shelf.store.ensure_job("digits", 1)
    shelf.store.replicate("digits", Replication("lake"))
    found = shelf.put()
    refused = lake("storage", "detach", "lake")
    assert (refused.code, "1 checkpoints wait to be copied" in refused.err) == (5, True)
    assert lake("storage", "delete", "lake").code == 5
    assert lake("storage", "detach", "lake", "--force").out.endswith("1 copies were given up\n")
    assert listed(lake) == ["given up"]
    waited = lake("checkpoint", "wait", found.id, "--status", "replicated")
    assert (waited.code, "given up: lake was detached" in waited.err) == (1, True)
    assert lake("storage", "delete", "lake").code == 0


def test_what_is_not_there_is_said(lake: Any, shelf: Any) -> None:
    for command in ("attach", "detach", "sync"):
        assert lake("storage", command, "sea").code == 3
    assert lake("storage", "sync", "lake").code == 2
    found = shelf.put()
    waited = lake("checkpoint", "wait", found.id, "--status", "replicated")
    assert (waited.code, "copied to no object store" in waited.err) == (1, True)


def test_an_object_store_that_ignores_conditions_is_for_one_machine(
    program: Any, careless: Careless, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = careless.remote().connection
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1/")
    given = ["--endpoint", str(known.endpoint), "--bucket", BUCKET, "--credentials-file", str(known.credentials_file)]
    made = program("storage", "create", "careless", "--provider", "s3", *given)
    assert (made.code, "for one machine's use alone" in made.out) == (0, True), made
    refused = program("storage", "attach", "careless")
    assert (refused.code, "machines cannot share such a store" in refused.err) == (1, True), refused
    assert refused.err.count("\n") == 1
    assert json.loads(program("storage", "list", "--json").out)[0]["attached"] is None
    alone = program("storage", "attach", "careless", "--exclusive")
    assert (alone.code, "for this store's exclusive use" in alone.out) == (0, True), alone


def test_a_server_from_which_nothing_large_comes_back_is_refused(
    program: Any, shelf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", NOWHERE["AWS_METADATA_ENDPOINT"])
    found = shelf.put(files={"a": b"a"})
    with rclone.serving(tmp_path) as known:
        given = ["--endpoint", known.endpoint, "--bucket", BUCKET, "--credentials-file", known.credentials_file]
        made = program("storage", "create", "rclone", "--provider", "s3", *given)
        assert (made.code, "only for checkpoint export --no-read-back" in made.out) == (0, True), made
        for options in ([], ["--exclusive"]):
            refused = program("storage", "attach", "rclone", *options)
            assert (refused.code, refused.err.count("\n")) == (1, 1), refused
            assert "sends whole objects where parts are asked for" in refused.err
        assert json.loads(program("storage", "list", "--json").out)[0]["attached"] is None
        to = ["--storage-provider", "rclone", "--destination-path"]
        proved = program("checkpoint", "export", found.id, *to, f"{BUCKET}/proved")
        assert (proved.code, "no large one can be read from it" in proved.err) == (1, True), proved
        trusted = program("checkpoint", "export", found.id, *to, f"{BUCKET}/trusted", "--no-read-back")
        assert trusted.code == 0, trusted
        assert (tmp_path / "rclone" / BUCKET / "trusted" / "a").read_bytes() == b"a"


def test_other_things_at_that_place_are_left_alone(lake: Any, tmp_path: Path) -> None:
    (tmp_path / "archive/team").mkdir()
    (tmp_path / "archive/team/thesis.tex").write_bytes(b"years of work")
    refused = lake("storage", "attach", "lake", "--path", "team")
    assert (refused.code, "holds other things" in refused.err) == (2, True)
    assert [path.name for path in (tmp_path / "archive/team").iterdir()] == ["thesis.tex"]


def test_gc_lets_go_here_of_what_is_replicated(lake: Any, shelf: Any) -> None:
    lake("storage", "attach", "lake")
    shelf.store.ensure_job("digits", 1)
    shelf.store.replicate("digits", Replication("lake"))
    first = shelf.put(files={"a": b"a"})
    lake("storage", "sync", "lake")
    shelf.put(files={"a": b"b"})
    (row, _) = json.loads(lake("checkpoint", "gc", "--policy", "keep-last=1", "--dry-run", "--json").out)["checkpoints"]
    assert (row["id"], row["action"]) == (first.id, "remove")
    assert row["reason"].endswith("its copy in lake stays")
    done = lake("checkpoint", "gc", "--policy", "keep-last=1")
    assert f"Let go here of {first.id} (digits/ckpt.pt)" in done.out
    assert listed(lake) == ["replicated, not here", "waiting"]


FILES = {"model.raw": b"m" * 1000, "optimizer.raw": b"o" * 5000}


@pytest.fixture
def elsewhere(lake: Any, tmp_path: Path) -> str:
    """The id of another machine's checkpoint that is listed here, and of which nothing more is."""
    with Store.open(tmp_path / "origin") as store:
        store.add_connection(Connection("lake", Provider.FILE, 1, root=str(tmp_path / "archive")))
        attach(store, "lake", {})
        store.ensure_job("digits", 1)
        store.replicate("digits", Replication("lake"))
        found = commit(store, "a", FILES, job="digits")
        assert sync(store, "lake", {}).copied == 1
    assert lake("storage", "attach", "lake").code == 0
    assert listed(lake) == ["replicated, not here"]
    return str(found.id)


def here(shelf: Any) -> int:
    return len(list(shelf.store.layout.blobs.glob("*/*")))


def test_what_asks_for_bytes_brings_them(lake: Any, shelf: Any, elsewhere: str, tmp_path: Path) -> None:
    inspected = json.loads(lake("checkpoint", "inspect", elsewhere, "--json").out)
    assert (len(inspected["status"]["files"]), here(shelf)) == (2, 0)
    fetch = ["checkpoint", "fetch", elsewhere, "--destination"]
    some = lake(*fetch, str(tmp_path / "some"), "--include", "model.*")
    assert (some.code, os.listdir(tmp_path / "some"), here(shelf)) == (0, ["model.raw"], 1), some
    assert lake(*fetch, str(tmp_path / "none"), "--include", "nothing").code == 3
    assert here(shelf) == 1
    assert lake(*fetch, str(tmp_path / "all")).code == 0
    assert here(shelf) == 2
    assert listed(lake) == ["replicated"]


@pytest.mark.parametrize("command", ["show", "diff", "scan", "export"])
def test_every_command_that_reads_files_brings_them(
    lake: Any, shelf: Any, elsewhere: str, tmp_path: Path, command: str
) -> None:
    if command == "diff":
        shelf.put("other", files={"model.raw": b"other"})
    (tmp_path / "exports").mkdir()
    lake("storage", "create", "exports", "--provider", "file", "--root", str(tmp_path / "exports"))
    more = {
        "diff": ["digits/other"],
        "export": ["--storage-provider", "exports", "--destination-path", "x"],
    }
    said = lake("checkpoint", command, elsewhere, *more.get(command, []))
    assert said.code == 0, said
    assert "not here" not in listed(lake)[0]
    if command == "export":
        assert (tmp_path / "exports/x/model.raw").read_bytes() == FILES["model.raw"]


@pytest.mark.parametrize("command", ["fetch", "show", "scan"])
def test_what_cannot_be_brought_is_said_in_one_line(
    lake: Any, elsewhere: str, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "archive").rglob("d/*/*/*"):
        path.unlink()
    said = lake("checkpoint", command, elsewhere)
    assert (said.code, "no longer there" in said.err) == (1, True), said
    assert listed(lake) == ["replicated, not here"]


def test_verify_says_what_it_has_not_read(lake: Any, shelf: Any, elsewhere: str, tmp_path: Path) -> None:
    for asked in (elsewhere, "--all"):
        said = lake("checkpoint", "verify", asked)
        assert (said.code, said.err.count("\n")) == (0, 1), said
        assert "in an object store alone, which were not read: checkpoint fetch" in said.err
    assert json.loads(lake("checkpoint", "verify", elsewhere, "--json").out)["notHere"] == [elsewhere]
    assert here(shelf) == 0
    assert lake("checkpoint", "fetch", elsewhere, "--destination", str(tmp_path / "out")).code == 0
    said = lake("checkpoint", "verify", elsewhere)
    assert (said.code, said.err) == (0, "")
