"""The catalog against the decisions it is made of, read by deltalake's own reader."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from arro3.core import Array, DataType
from arro3.core import Table as Columns
from deltalake import DeltaTable, write_deltalake
from msgspec.structs import replace

from fuse_ckpt.catalog import Row, append, columns, row_of, sync, table
from fuse_ckpt.catalog.table import Outrun, Table
from fuse_ckpt.errors import Corrupt, PermissionRefused, UnknownJob, UsageError
from fuse_ckpt.model import Connection, Metadata, Provider
from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.transfer import Access, Place, Remote, access_of
from tests.sharing.conftest import JOB, NS, MakeNode, Node, established
from tests.transfer.seaweed import NOWHERE, Seaweed

Rows = list[dict[str, Any]]


def opened(access: Access) -> DeltaTable:
    return DeltaTable(access.uri, storage_options=access.options)


def rows_of(access: Access) -> Rows:
    """What a reader that knows nothing of us sees, in the order of ids."""
    found: Columns = opened(access).scan().read_all()
    names = found.schema.names
    values = [found.column(name).to_pylist() for name in names]
    return sorted((dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)), key=lambda row: row["id"])


def save(node: Node, name: str, **more: object) -> str:
    """A checkpoint that is decided; its group."""
    part = node.save(name, {"a": name.encode(errors="replace")}, **more)
    node.store.reconcile(JOB, part.group)
    return part.group


def listed(shared: SharedStore) -> list[str]:
    return [one.id for one in shared.list(JOB)]


def ids(access: Access) -> list[str]:
    return [row["id"] for row in rows_of(access)]


def test_a_row_says_what_the_decision_says(shared: SharedStore, node: MakeNode, access: Access) -> None:
    said = Metadata(
        step=500, train_loss=0.25, eval_loss=None, model="LlamaForCausalLM", version="4.51.0", inference_ready=True,
        resumable=True, format="safetensors", tensors=291, epoch=1.5,
    )  # fmt: skip
    parent = "01890000-0000-7000-8000-000000000000"
    group = save(node(), "checkpoint-500", metadata=said, parent=parent)
    done = sync(shared, access)
    assert (done.made, done.rows, done.added) == (True, 1, 1)
    (decision,) = shared.list(JOB)
    (row,) = rows_of(access)
    moment = datetime.fromtimestamp(NS // 10**9, UTC).replace(microsecond=NS // 1000 % 10**6)
    assert row == {
        "id": decision.id, "job": JOB, "name": "checkpoint-500", "step": 500, "epoch": 1.5, "train_loss": 0.25,
        "eval_loss": None, "model": "LlamaForCausalLM", "version": "4.51.0", "format": "safetensors", "tensors": 291,
        "inference_ready": True, "resumable": True, "created": moment, "committed": moment, "size_bytes": 14,
        "files": 1, "nodes": 1, "node_names": ["node-0"], "attempt": "0", "generation": 1, "parent": parent,
        "run": None, "decision": f"j/{JOB}/c/{group}.json",
    }  # fmt: skip


def test_columns_have_types_that_can_be_reckoned_with(shared: SharedStore, access: Access) -> None:
    sync(shared, access)
    found = {field.name: field.type for field in opened(access).schema().fields}
    kinds = {str(getattr(kind, "type", kind)) for kind in found.values()}
    assert kinds == {"string", "long", "double", "boolean", "timestamp", "array"}
    assert {name for name, kind in found.items() if str(getattr(kind, "type", "")) == "timestamp"} == {
        "created", "committed",
    }  # fmt: skip


def test_each_sync_is_one_version_and_none_where_nothing_has_changed(
    shared: SharedStore, node: MakeNode, access: Access
) -> None:
    groups = [save(node(), f"checkpoint-{number}") for number in range(3)]
    sync(shared, access)
    assert not sync(shared, access).changed
    assert opened(access).version() == 0
    groups.append(save(node(), "checkpoint-3"))
    done = sync(shared, access)
    assert (done.added, done.replaced, done.removed, done.rows) == (1, 0, 0, 4)
    shared.tombstone(JOB, groups[0], NS)
    shared.tombstone(JOB, groups[2], NS)
    done = sync(shared, access)
    assert (done.added, done.replaced, done.removed, done.rows) == (0, 0, 2, 2)
    assert ids(access) == listed(shared)
    assert opened(access).version() == 2


def write_by_hand(access: Access, row: Row) -> None:
    write_deltalake(opened(access), columns.reader([columns.pack(row)]), mode="append")


def test_rows_of_others_hands_are_put_right(shared: SharedStore, node: MakeNode, access: Access) -> None:
    """One that says something else, one that is there twice, one of a checkpoint that never was."""
    for number in range(3):
        save(node(), f"checkpoint-{number}")
    sync(shared, access)
    before = rows_of(access)
    opened(access).update(predicate=f"id = '{before[0]['id']}'", updates={"step": "99"})
    second = shared.list(JOB)[1]
    row = row_of(second, shared.decision_key(JOB, second.group))
    write_by_hand(access, row)
    write_by_hand(access, replace(row, id="nobody's"))
    done = sync(shared, access)
    assert (done.added, done.replaced, done.removed, done.rows) == (0, 2, 1, 3)
    assert rows_of(access) == before


def test_one_job_leaves_the_rows_of_others(shared: SharedStore, node: MakeNode, access: Access) -> None:
    save(node(), "checkpoint-1")
    sync(shared, access)
    (decision,) = shared.list(JOB)
    write_by_hand(access, replace(row_of(decision, "there"), id="another", job="o'h"))
    save(node(), "checkpoint-2")
    assert sync(shared, access, [JOB]).rows == 3
    shared.tombstone(JOB, decision.group, NS)
    assert sync(shared, access, [JOB]).removed == 1
    assert sorted(row["job"] for row in rows_of(access)) == [JOB, "o'h"]
    assert sync(shared, access, ["o'h"]).removed == 1, "a job of which nothing is there any more"
    with pytest.raises(UnknownJob):
        sync(shared, access, ["never"])


def test_names_that_are_no_text_are_written_as_escapes(shared: SharedStore, node: MakeNode, access: Access) -> None:
    save(node(), "ckpt-\udcff-é-\u202e")
    sync(shared, access)
    assert [row["name"] for row in rows_of(access)] == ["ckpt-\\xff-é-\\u202e"]
    assert not sync(shared, access).changed


def test_a_number_that_no_column_can_hold_is_left_out(shared: SharedStore, node: MakeNode, access: Access) -> None:
    save(node(), "checkpoint-1", metadata=Metadata(step=2**63, tensors=2**63 - 1))
    sync(shared, access)
    (row,) = rows_of(access)
    assert (row["step"], row["tensors"]) == (None, 2**63 - 1)


def test_a_version_is_written_only_on_top_of_the_one_that_was_read(
    shared: SharedStore, node: MakeNode, access: Access
) -> None:
    save(node(), "checkpoint-1")
    slow, empty = Table(access), Table(access)
    assert not slow.load()
    sync(shared, access)
    with pytest.raises(Outrun):
        empty.create([])
    assert slow.load()
    save(node(), "checkpoint-2")
    sync(shared, access)
    (decision, _) = shared.list(JOB)
    row = columns.pack(row_of(decision, "x"))
    for write in (slow.append, slow.replace):
        with pytest.raises(Outrun):
            write([row])
    assert ids(access) == listed(shared)


def test_syncs_at_once_double_no_row_and_lose_none(shared: SharedStore, node: MakeNode, access: Access) -> None:
    """Four that sync and four that append, from the first version on, while checkpoints come and go."""
    one = node()
    groups = [save(one, f"checkpoint-{number}") for number in range(8)]
    barrier = Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        if number % 2:
            append(shared, access, [(JOB, groups[number])])
        else:
            sync(shared, access)

    for turn in range(3):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert ids(access) == listed(shared)
        shared.tombstone(JOB, groups[turn], NS)
        groups[turn] = save(one, f"checkpoint-{10 + turn}")
    sync(shared, access)
    assert ids(access) == listed(shared)


def test_appending_is_for_who_has_a_catalog_and_says_nothing_twice(
    shared: SharedStore, node: MakeNode, access: Access
) -> None:
    first = save(node(), "checkpoint-1")
    assert append(shared, access, [(JOB, first)]) == 0
    assert not shared.has_catalog(), "nobody has asked for one"
    sync(shared, access)
    assert shared.has_catalog()
    second, deleted = save(node(), "checkpoint-2"), save(node(), "checkpoint-3")
    shared.tombstone(JOB, deleted, NS)
    partial = node(0, 2).save("checkpoint-4", {"a": b"a"}).group
    groups = [(JOB, group) for group in (first, second, deleted, partial)]
    assert append(shared, access, groups) == 1
    assert append(shared, access, groups) == 0
    assert ids(access) == listed(shared)
    assert not sync(shared, access).changed


def test_many_small_files_become_one(
    shared: SharedStore, node: MakeNode, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "FILES", 3)
    sync(shared, access)
    for number in range(5):
        assert append(shared, access, [(JOB, save(node(), f"checkpoint-{number}"))]) == 1
    assert len(opened(access).file_uris()) <= 3
    assert ids(access) == listed(shared)


def lose(remote: Remote, place: Place, which: Callable[[str], bool]) -> None:
    gone = [key for key in remote.list(place.prefix) if which(key)]
    assert gone
    remote.delete(gone)


@pytest.mark.parametrize("what", [".parquet", "00.json", "spoilt log", "spoilt data"])
def test_what_was_lost_or_damaged_is_made_anew(
    what: str, shared: SharedStore, node: MakeNode, access: Access, remote: Remote
) -> None:
    for number in range(3):
        save(node(), f"checkpoint-{number}")
        sync(shared, access)
    before = rows_of(access)
    if what.startswith("spoilt"):
        end = ".json" if what == "spoilt log" else ".parquet"
        for key in [key for key in remote.list(shared.catalog.prefix) if key.endswith(end)]:
            remote.put(key, b"what is this")
    else:
        lose(remote, shared.catalog, lambda key: key.endswith(what))
    with pytest.raises(Corrupt, match="--rebuild"):
        sync(shared, access)
    with pytest.raises(Corrupt):
        append(shared, access, [(JOB, shared.list(JOB)[0].group)])
    done = sync(shared, access, rebuild=True)
    assert (done.made, done.rows) == (True, 3)
    assert rows_of(access) == before
    assert not sync(shared, access).changed


def test_one_that_has_gone_is_made_again(shared: SharedStore, node: MakeNode, access: Access, remote: Remote) -> None:
    save(node(), "checkpoint-1")
    sync(shared, access)
    lose(remote, shared.catalog, lambda key: True)
    assert sync(shared, access).made
    assert ids(access) == listed(shared)


def test_a_table_of_somebody_else_is_left_alone(shared: SharedStore, access: Access) -> None:
    theirs = Columns.from_pydict({"n": Array([1, 2, 3], DataType.int64())})
    write_deltalake(access.uri, theirs, storage_options=access.options, name="theirs")
    for rebuild in (False, True):
        with pytest.raises(UsageError, match="is another's"):
            sync(shared, access, rebuild=rebuild)
    assert opened(access).scan().read_all().num_rows == 3


def test_damaged_decisions_are_named_and_have_no_row(
    shared: SharedStore, node: MakeNode, access: Access, remote: Remote
) -> None:
    group = save(node(), "checkpoint-1")
    save(node(), "checkpoint-2")
    remote.put(shared.place.key(shared.decision_key(JOB, group)), b"{}\n{}\n")
    done = sync(shared, access)
    assert (done.rows, len(done.problems)) == (1, 1)
    assert ids(access) == listed(shared)


def test_who_may_only_read_is_told_so(seaweed: Seaweed, place: Place, tmp_path: Path) -> None:
    shared = established(SharedStore(seaweed.remote(), place))
    save(Node(shared, tmp_path / "node"), "checkpoint-1")
    reader = seaweed.remote(file=seaweed.reader)
    access = access_of(reader.connection, shared.catalog, NOWHERE, 5.0)
    with pytest.raises(PermissionRefused) as caught:
        sync(SharedStore(reader, place), access)
    assert "\n" not in str(caught.value)
    assert not shared.has_catalog()


def test_files_that_no_version_has_go_after_a_week(tmp_path: Path) -> None:
    known = Connection("disk", Provider.FILE, 1, root=str(tmp_path))
    shared = established(SharedStore(Remote(known, "", NOWHERE), Place("", "x")))
    access = access_of(known, shared.catalog, NOWHERE, 5.0)
    group = save(Node(shared, tmp_path / "node"), "checkpoint-1")
    sync(shared, access)
    old, new = (tmp_path / f"x/catalog/part-{age}.parquet" for age in ("old", "new"))
    for path, days in ((old, 8), (new, 6)):
        path.write_bytes(b"of a writer that was killed")
        os.utime(path, (time.time() - days * 86400,) * 2)
    shared.tombstone(JOB, group, NS)
    assert sync(shared, access).removed == 1
    assert (old.exists(), new.exists()) == (False, True)
    assert not sync(shared, access).changed
