from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fuse_ckpt.errors import PermissionRefused
from fuse_ckpt.transfer import Place, Remote, probe
from tests.transfer import rclone
from tests.transfer.conftest import place_in_bucket
from tests.transfer.proxy import Proxy
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed


def test_a_store_that_keeps_conditions_can_be_shared(remote: Remote, there: Place) -> None:
    found = probe(remote, there)
    assert (found.reads_back, found.second_create, found.winners, found.removes) == (True, False, 1, True)
    assert found.creates_once
    assert remote.list(there.prefix) == {}


def test_a_store_that_ignores_conditions_is_found_out(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    real = obstore.put

    def careless(*arguments: Any, mode: object = None, **options: Any) -> object:
        return real(*arguments, **options)

    monkeypatch.setattr(obstore, "put", careless)
    found = probe(seaweed.remote(), place_in_bucket("careless"))
    assert found.second_create
    assert found.winners == 16
    assert not found.creates_once


def test_a_server_that_sends_no_parts_and_has_16_winners_is_found_out(tmp_path: Path) -> None:
    with rclone.serving(tmp_path) as connection:
        found = probe(Remote(connection, BUCKET, NOWHERE, 5.0), Place(BUCKET, "x"))
    assert (found.reads_back, found.reads_parts) == (True, False)
    assert (found.second_create, found.creates_once) == (True, False)
    assert found.winners > 1


def test_who_may_only_read_is_told_so(seaweed: Seaweed) -> None:
    with pytest.raises(PermissionRefused, match="does not permit this"):
        probe(seaweed.remote(file=seaweed.reader), place_in_bucket("reader"))


def test_a_conflict_that_let_nothing_land_is_tried_again(seaweed: Seaweed, faulty: Proxy) -> None:
    """A 409 is said to mean that the object exists; looking tells whether it does."""
    where = place_in_bucket("conflict")
    remote = seaweed.remote(endpoint=faulty.endpoint)
    faulty.decide = lambda method, path, count: 409 if count == 0 else None
    assert remote.create(where.key("a"), b"mine")
    assert not remote.create(where.key("a"), b"another's")
    assert remote.create(where.key("a"), b"mine")  # an answer that was lost: one's own bytes are there
    assert remote.get(where.key("a"), 100) == b"mine"
