"""A table of the index whose keys are names, inside one transaction."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import lmdb

from fuse_ckpt.errors import CorruptRecord

from .codec import seal, unseal

T = TypeVar("T")


class Named(Generic[T]):
    """Records of one kind by name. `what` is what a record is called where it is damaged.

    `table` None: it was never made, and can only be read, as an empty one.
    """

    def __init__(
        self,
        transaction: lmdb.Transaction[bytes],
        table: lmdb._Database | None,
        kind: type[T],
        what: str,
        problems: dict[str, None],
    ) -> None:
        self._transaction = transaction
        self._table = table
        self._kind = kind
        self._what = what
        self._problems = problems

    def get(self, name: str) -> T | None:
        """Errors: CorruptRecord."""
        key = _key(name)
        raw = self._row(key)
        return None if raw is None else unseal(key, raw, self._kind, self._describe)

    def has(self, name: str) -> bool:
        """Whether there is a record, be it damaged."""
        return self._row(_key(name)) is not None

    def all(self) -> Iterator[T]:
        """In the order of their names; a damaged one is left out and noted."""
        for key, raw in () if self._table is None else self._transaction.cursor(db=self._table):
            try:
                yield unseal(key, raw, self._kind, self._describe)
            except CorruptRecord as error:
                self._problems[str(error)] = None

    def put(self, name: str, value: T) -> None:
        key = _key(name)
        self._transaction.put(key, seal(key, value), db=self._table)

    def drop(self, name: str) -> bool:
        """Whether there was one."""
        return bool(self._transaction.delete(_key(name), db=self._table))

    def _row(self, key: bytes) -> bytes | None:
        return None if self._table is None else self._transaction.get(key, db=self._table)

    def _describe(self, key: bytes) -> str:
        return f"{self._what} {key.decode(errors='replace')}"


def _key(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
