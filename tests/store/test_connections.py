from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from fuse_ckpt.errors import UnknownConnection, UsageError
from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.store import Store

LAKE = Connection("lake", Provider.S3, 1, bucket="models", credentials_file="/secret/file")
DISK = Connection("disk", Provider.FILE, 2, root="/archive")


def test_a_connection_is_there_for_every_process_under_its_name(root: Path) -> None:
    with Store.open(root) as store:
        store.add_connection(LAKE)
        store.add_connection(DISK)
    with Store.open(root) as store:
        assert store.connections() == [DISK, LAKE]
        assert store.connection("lake") == LAKE
        assert store.verify() == []


def test_a_name_is_taken_once(store: Store) -> None:
    store.add_connection(LAKE)
    with pytest.raises(UsageError, match="lake already"):
        store.add_connection(replace(DISK, name="lake"))
    assert store.connections() == [LAKE]


def test_what_is_known_of_one_can_be_put_anew(store: Store) -> None:
    store.add_connection(LAKE)
    store.replace_connection(replace(LAKE, creates_once=True, probed_ns=3))
    assert store.connection("lake").creates_once is True
    with pytest.raises(UnknownConnection):
        store.replace_connection(DISK)


def test_a_forgotten_one_is_unknown(store: Store) -> None:
    store.add_connection(LAKE)
    store.drop_connection("lake")
    for attempt in (store.connection, store.drop_connection):
        for name in ("lake", "", "x\0y"):
            with pytest.raises(UnknownConnection):
                attempt(name)


def test_a_damaged_record_is_left_out_and_told(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fuse_ckpt.store import named

    store.add_connection(LAKE)
    monkeypatch.setattr(named, "seal", lambda key, value: b"\0" * 40)
    store.add_connection(DISK)
    monkeypatch.undo()
    assert store.connections() == [LAKE]
    assert any("disk" in problem for problem in store.problems)
    store.drop_connection("disk")
