"""Shared stores on each kind of object store, and the way of their catalogs."""

from __future__ import annotations

import pytest

from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.transfer import Access, Remote, access_of
from tests.sharing.conftest import node, place, remote, shared
from tests.transfer.seaweed import NOWHERE

__all__ = ["node", "place", "remote", "shared"]


@pytest.fixture
def access(remote: Remote, shared: SharedStore) -> Access:
    return access_of(remote.connection, shared.catalog, NOWHERE, 5.0)
