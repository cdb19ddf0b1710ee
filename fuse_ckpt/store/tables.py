"""The tables of the index and their records, each with its checksum, inside one transaction."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import partial
from itertools import takewhile
from typing import TypeVar
from uuid import UUID

import lmdb
from blake3 import blake3
from msgspec import Struct

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Checkpoint, Connection, Job, Manifest, Replica, Run, Scan

from .codec import seal, unseal
from .named import Named

T = TypeVar("T")
NAME_HASH = 16  # bytes
ORDINAL = struct.Struct(">I")
INODE = struct.Struct(">Q")


class Blob(Struct, frozen=True):
    """How many manifests name a blob (each once, however many of its entries do), and its size."""

    refs: int
    size: int


class Garbage(Struct, frozen=True):
    """A blob that its last manifest left: its size, and the number of its inode (0: it was not there)."""

    size: int
    ino: int


class Left(Struct, frozen=True):
    """A collected checkpoint whose files the working tree may hold still: (path below the root, size, mtime in ns)."""

    files: tuple[tuple[str, int, int], ...]


class Remnant(Struct, frozen=True):
    """What a collected checkpoint leaves in the index: `left` under its key, or, under its by_name key, its number."""

    key: bytes
    left: Left | None = None
    id: str = ""


class Kept(Struct, frozen=True):
    """A row that a new index takes over from the old one as it is."""

    table: str
    key: bytes
    row: bytes


class Totals(Struct, frozen=True):
    """Running sums over all blobs that a manifest names, and how often blobs were taken away so far."""

    blobs: int = 0
    bytes: int = 0
    collections: int = 0


class Table(StrEnum):
    CHECKPOINTS = "checkpoints"
    MANIFESTS = "manifests"
    BY_JOB = "by_job"
    BY_NAME = "by_name"
    TAGS = "tags"
    BLOBS = "blobs"
    INODES = "inodes"
    GARBAGE = "garbage"
    LEFT = "left"
    TOTALS = "totals"
    JOBS = "jobs"
    RUNS = "runs"
    CONNECTIONS = "connections"
    SCANS = "scans"
    OUTBOX = "outbox"
    REPLICAS = "replicas"
    GENERATIONS = "generations"
    SENT = "sent"
    HELD = "held"


KINDS: dict[Table, type] = {
    Table.CHECKPOINTS: Checkpoint,
    Table.MANIFESTS: Manifest,
    Table.BY_NAME: bytes,
    Table.TAGS: bytes,
    Table.BLOBS: Blob,
    Table.INODES: bytes,
    Table.GARBAGE: Garbage,
    Table.LEFT: Left,
    Table.TOTALS: Totals,
    Table.JOBS: Job,
    Table.RUNS: Run,
    Table.CONNECTIONS: Connection,
    Table.SCANS: Scan,
    Table.OUTBOX: Replica,
    Table.REPLICAS: Replica,
    Table.GENERATIONS: int,
    Table.SENT: str,
    Table.HELD: bytes,
}


def id_key(checkpoint: str) -> bytes | None:
    """The key of an id; None for a text that is no canonical UUID."""
    try:
        key = UUID(checkpoint)
    except ValueError:
        return None
    return key.bytes if str(key) == checkpoint else None


def id_of(key: bytes) -> str:
    """str(UUID(bytes=key)), at a sixth of its time: short references are looked for among all ids."""
    text = key.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def name_key(job: str, name: str) -> bytes:
    """What the by_name keys of (job, name) begin with: names are longer than LMDB's keys may be."""
    return blake3(f"{job}\0{name}".encode(errors="surrogateescape")).digest(length=NAME_HASH)


def job_prefix(job: str) -> bytes:
    return job.encode(errors="surrogateescape") + b"\0"


class Tables:
    """The records of each table by key. A lookup of one raises CorruptRecord where it is damaged; a listing leaves it
    out and notes it in `problems`. A table that is not among `tables` is read as an empty one."""

    def __init__(
        self,
        transaction: lmdb.Transaction[bytes],
        tables: Mapping[Table, lmdb._Database],
        problems: dict[str, None],
    ) -> None:
        self._transaction = transaction
        self._tables = tables
        self._problems = problems

    def damage(self) -> list[str]:
        """A sentence for each record that fails its checksum."""
        found: dict[str, None] = {}
        whole = Tables(self._transaction, self._tables, found)
        for table, kind in KINDS.items():
            for _ in whole._scan(table, b"", kind):
                pass
        return list(found)

    def named(self, table: Table, kind: type[T]) -> Named[T]:
        """The records of a table whose keys are names."""
        return Named(self._transaction, self._tables.get(table), kind, table.value, self._problems)

    def _row(self, table: Table, key: bytes) -> bytes | None:
        found = self._tables.get(table)
        return None if found is None or not key else self._transaction.get(key, db=found)  # LMDB refuses an empty key

    def _get(self, table: Table, key: bytes, kind: type[T]) -> T | None:
        raw = self._row(table, key)
        return None if raw is None else unseal(key, raw, kind, partial(_describe, table))

    def _put(self, table: Table, key: bytes, value: object) -> None:
        self._transaction.put(key, seal(key, value), db=self._tables[table])

    def _delete(self, table: Table, key: bytes) -> None:
        self._transaction.delete(key, db=self._tables[table])

    def _cursor(self, table: Table) -> lmdb.Cursor[bytes] | None:
        found = self._tables.get(table)
        return None if found is None else self._transaction.cursor(db=found)

    def _keys(self, table: Table, prefix: bytes) -> Iterator[bytes]:
        cursor = self._cursor(table)
        keys = cursor.iternext(values=False) if cursor is not None and cursor.set_range(prefix) else iter(())
        return takewhile(lambda key: key.startswith(prefix), keys)

    def _from(self, table: Table, first: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._cursor(table)
        return iter(cursor.iternext()) if cursor is not None and cursor.set_range(first) else iter(())

    def _items(self, table: Table, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return takewhile(lambda item: item[0].startswith(prefix), self._from(table, prefix))

    def _backwards(self, table: Table, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """As `_items`, the last one first. No key of the table goes on with 0xff after `prefix`."""
        cursor = self._cursor(table)
        if cursor is None:
            return
        there = cursor.prev() if cursor.set_range(prefix + b"\xff" * 17) else cursor.last()
        for key, value in cursor.iterprev() if there else ():
            if not key.startswith(prefix):
                return
            yield key, value

    def _scan(self, table: Table, prefix: bytes, kind: type[T]) -> Iterator[T]:
        for _, value in self._pairs(table, self._items(table, prefix), kind):
            yield value

    def _pairs(self, table: Table, items: Iterator[tuple[bytes, bytes]], kind: type[T]) -> Iterator[tuple[bytes, T]]:
        for key, raw in items:
            try:
                value = unseal(key, raw, kind, partial(_describe, table))
            except CorruptRecord as error:
                self._problems[str(error)] = None
                continue
            yield key, value


def _describe(table: Table, key: bytes) -> str:
    if table in (Table.CHECKPOINTS, Table.MANIFESTS) and len(key) == 16:
        return f"{table.value[:-1]} {id_of(key)}"
    if table is Table.JOBS:
        return f"job {key.decode(errors='replace')}"
    if table is Table.TAGS:
        return f"tag {key.decode(errors='replace')}"
    if table is Table.RUNS:
        return f"a run of job {key.partition(bytes(1))[0].decode(errors='replace')}"
    if table is Table.BLOBS:
        return f"blob {key.hex()}"
    return f"{table.value} {key.hex()}"
