"""The file of the index, before LMDB maps it: LMDB trusts its length, and a page that is not there is SIGBUS."""

from __future__ import annotations

import os
import struct
from pathlib import Path

# mdb.c of LMDB 0.9, MDB_page's header and MDB_meta: magic, version, address, map size; the free list's record (its
# first word is the page size) and the main one's, 48 bytes each; the last page in use; the transaction.
_META = struct.Struct("<16xIIQQI92xQQ")
_MAGIC = 0xBEEFC0DE
_PAGE_SIZES = {1 << power for power in range(9, 17)}


def make_long_enough(path: Path) -> None:
    """Give a file that was cut off its length back, as a hole: what is read there is no page, and LMDB says so."""
    length = lacking_length(path)
    if length is not None:
        os.truncate(path, length)


def lacking_length(path: Path) -> int | None:
    """The length that a file would have to have, where it is shorter.

    It may be a little shorter than it says without being damaged: a page that was taken and given back within one
    transaction is never written.
    """
    try:
        with path.open("rb") as file:
            metas = [_read(file.read(_META.size))]
            if metas[0] is None:
                return None
            file.seek(metas[0].page)
            metas.append(_read(file.read(_META.size)))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    newest = max((meta for meta in metas if meta is not None), key=lambda meta: meta.transaction)
    wanted = (newest.last + 1) * newest.page
    return wanted if size < wanted <= newest.map_size else None


class _Meta:
    """One of the two pages at the file's beginning; the one of the later transaction counts."""

    def __init__(self, map_size: int, page: int, last: int, transaction: int) -> None:
        self.map_size = map_size
        self.page = page
        self.last = last
        self.transaction = transaction


def _read(data: bytes) -> _Meta | None:
    if len(data) < _META.size:
        return None
    magic, _, _, map_size, page, last, transaction = _META.unpack(data)
    return _Meta(map_size, page, last, transaction) if magic == _MAGIC and page in _PAGE_SIZES else None
