"""The tables of the index, inside one transaction.

    checkpoints   id                            → Checkpoint         its state is this record's, nobody else's
    manifests     id                            → Manifest
    by_job        job \\0 id                     → (nothing)
    by_name       BLAKE3-128(job \\0 name) n     → id                 n: the ordinal, 4 bytes, big-endian
    blobs         digest                        → Blob
    inodes        inode number                  → digest
    jobs          job                           → Job
    runs          job \\0 run id                 → Run

An id is the 16 bytes of its UUID, so the order of keys is the order of commits. The inodes' table has no device:
only an inode on the blobs' own device can be a blob, and device numbers change when the machine starts again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from functools import partial
from itertools import takewhile
from typing import TypeVar
from uuid import UUID

import lmdb
from blake3 import blake3
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Checkpoint, InodeKey, Job, Manifest, Run, State

from .codec import seal, unseal

T = TypeVar("T")
NAME_HASH = 16  # bytes
ORDINAL = struct.Struct(">I")
INODE = struct.Struct(">Q")


class Blob(Struct, frozen=True):
    """How many manifests name a blob (each once, however many of its entries do), and its size."""

    refs: int
    size: int


class Table(StrEnum):
    CHECKPOINTS = "checkpoints"
    MANIFESTS = "manifests"
    BY_JOB = "by_job"
    BY_NAME = "by_name"
    BLOBS = "blobs"
    INODES = "inodes"
    JOBS = "jobs"
    RUNS = "runs"


KINDS: dict[Table, type] = {
    Table.CHECKPOINTS: Checkpoint,
    Table.MANIFESTS: Manifest,
    Table.BY_NAME: bytes,
    Table.BLOBS: Blob,
    Table.INODES: bytes,
    Table.JOBS: Job,
    Table.RUNS: Run,
}


def id_key(checkpoint: str) -> bytes | None:
    """The key of an id; None for a text that is no canonical UUID."""
    try:
        key = UUID(checkpoint)
    except ValueError:
        return None
    return key.bytes if str(key) == checkpoint else None


def _id(key: bytes) -> str:
    """str(UUID(bytes=key)), at a sixth of its time: short references are looked for among all ids."""
    text = key.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def name_key(job: str, name: str) -> bytes:
    """What the by_name keys of (job, name) begin with: names are longer than LMDB's keys may be."""
    return blake3(f"{job}\0{name}".encode(errors="surrogateescape")).digest(length=NAME_HASH)


def _job_prefix(job: str) -> bytes:
    return job.encode(errors="surrogateescape") + b"\0"


class Records:
    """The index as typed records. Valid inside the transaction alone.

    A lookup of one record raises CorruptRecord where it is damaged; a listing leaves it out and notes it in `problems`.
    """

    def __init__(
        self,
        transaction: lmdb.Transaction[bytes],
        tables: Mapping[Table, lmdb._Database],
        problems: dict[str, None],
    ) -> None:
        self._transaction = transaction
        self._tables = tables
        self._problems = problems

    # checkpoints

    def by_id(self, checkpoint: str) -> Checkpoint | None:
        """The checkpoint of a full id, unless it is deleted."""
        key = id_key(checkpoint)
        found = None if key is None else self._get(Table.CHECKPOINTS, key, Checkpoint)
        return None if found is None or found.state is State.DELETED else found

    def manifest(self, checkpoint: str) -> Manifest | None:
        head = self.by_id(checkpoint)
        if head is None:
            return None
        manifest = self._get(Table.MANIFESTS, UUID(checkpoint).bytes, Manifest)
        if manifest is None:
            raise CorruptRecord(f"The index has no manifest of checkpoint {checkpoint}.")
        return replace(manifest, checkpoint=head)

    def checkpoints(self, job: str | None = None) -> Iterator[Checkpoint]:
        """All checkpoints, deleted ones too, of one job or of all, in the order of their ids."""
        if job is None:
            yield from self._scan(Table.CHECKPOINTS, b"", Checkpoint)
            return
        prefix = _job_prefix(job)
        for key in self._keys(Table.BY_JOB, prefix):
            try:
                found = self._get(Table.CHECKPOINTS, key[len(prefix) :], Checkpoint)
            except CorruptRecord as error:
                self._problems[str(error)] = None
                continue
            if found is not None:
                yield found

    def ids(self) -> Iterator[str]:
        """All ids in order, also of deleted checkpoints; without reading a record."""
        return map(_id, self._keys(Table.CHECKPOINTS, b""))

    def newest_id(self) -> str | None:
        cursor = self._transaction.cursor(db=self._tables[Table.CHECKPOINTS])
        return _id(cursor.key()) if cursor.last() else None

    def version(self, job: str, name: str, ordinal: int) -> Checkpoint | None:
        """The `ordinal`-th checkpoint of (job, name), unless it is deleted."""
        if not 0 < ordinal < 1 << 32:
            return None
        key = name_key(job, name) + ORDINAL.pack(ordinal)
        found = self._get(Table.BY_NAME, key, bytes)
        return None if found is None else self.by_id(_id(found))

    def newest(self, job: str, name: str) -> Checkpoint | None:
        """The newest checkpoint of (job, name) that is not deleted."""
        versions = (self.version(job, name, n) for n in self._ordinals(job, name))
        return next((found for found in versions if found is not None), None)

    def last_ordinal(self, job: str, name: str) -> int:
        return next(self._ordinals(job, name), 0)

    def add(self, manifest: Manifest, sealed: Iterable[tuple[InodeKey, str]]) -> None:
        """Record a new checkpoint: it, its manifest, one reference to each of its blobs, its sealed inodes."""
        head = manifest.checkpoint
        key = UUID(head.id).bytes
        self.put_checkpoint(head)
        self._transaction.put(_job_prefix(head.job) + key, b"", db=self._tables[Table.BY_JOB])
        self._put(Table.BY_NAME, name_key(head.job, head.name) + ORDINAL.pack(head.ordinal), key)
        self.hold(manifest, {}, sealed)

    def hold(self, manifest: Manifest, known: Mapping[str, int], sealed: Iterable[tuple[InodeKey, str]]) -> None:
        """Put a manifest, one reference to each of its blobs but those of `known`, and its sealed inodes."""
        self._put(Table.MANIFESTS, UUID(manifest.checkpoint.id).bytes, manifest)
        for digest, size in blob_sizes(manifest).items():
            if digest not in known:
                self._refer(bytes.fromhex(digest), size)
        for inode, digest in sealed:
            self._put(Table.INODES, INODE.pack(inode.ino), bytes.fromhex(digest))

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        self._put(Table.CHECKPOINTS, UUID(checkpoint.id).bytes, checkpoint)

    # blobs

    def has_blob(self, digest: str) -> bool:
        """Whether a record names the digest; also where that record is damaged."""
        return self._transaction.get(bytes.fromhex(digest), db=self._tables[Table.BLOBS]) is not None

    def digests(self) -> set[str]:
        """Every digest that a record names."""
        return {key.hex() for key in self._keys(Table.BLOBS, b"")}

    def digest_of(self, inode: InodeKey) -> str | None:
        """The digest that was recorded for an inode. Whether its blob still is that inode only the disk can tell."""
        found = self._get(Table.INODES, INODE.pack(inode.ino), bytes)
        return None if found is None else found.hex()

    # jobs and runs

    def job(self, name: str) -> Job | None:
        return self._get(Table.JOBS, _job_prefix(name)[:-1], Job)

    def jobs(self) -> list[Job]:
        return list(self._scan(Table.JOBS, b"", Job))

    def put_job(self, job: Job) -> None:
        self._put(Table.JOBS, _job_prefix(job.name)[:-1], job)

    def runs(self, job: str) -> list[Run]:
        return list(self._scan(Table.RUNS, _job_prefix(job), Run))

    def put_run(self, run: Run) -> None:
        self._put(Table.RUNS, _job_prefix(run.job) + UUID(run.id).bytes, run)

    def drop_run(self, run: Run) -> None:
        self._transaction.delete(_job_prefix(run.job) + UUID(run.id).bytes, db=self._tables[Table.RUNS])

    # all

    def damage(self) -> list[str]:
        """A sentence for each record that fails its checksum."""
        found: dict[str, None] = {}
        whole = Records(self._transaction, self._tables, found)
        for table, kind in KINDS.items():
            for _ in whole._scan(table, b"", kind):
                pass
        return list(found)

    def _ordinals(self, job: str, name: str) -> Iterator[int]:
        """The ordinals of (job, name), from the last to the first."""
        prefix = name_key(job, name)
        cursor = self._transaction.cursor(db=self._tables[Table.BY_NAME])
        past = cursor.set_range(prefix + b"\xff" * (ORDINAL.size + 1))
        there = cursor.prev() if past else cursor.last()
        while there and cursor.key().startswith(prefix):
            yield int(ORDINAL.unpack(cursor.key()[NAME_HASH:])[0])
            there = cursor.prev()

    def _refer(self, digest: bytes, size: int) -> None:
        try:
            before = self._get(Table.BLOBS, digest, Blob)
        except CorruptRecord as error:
            self._problems[str(error)] = None
            before = None  # a count that is too low is put right by collect, which counts again before it removes
        self._put(Table.BLOBS, digest, Blob(before.refs + 1 if before else 1, size))

    def _get(self, table: Table, key: bytes, kind: type[T]) -> T | None:
        raw = self._transaction.get(key, db=self._tables[table])
        return None if raw is None else unseal(key, raw, kind, partial(_describe, table))

    def _put(self, table: Table, key: bytes, value: object) -> None:
        self._transaction.put(key, seal(key, value), db=self._tables[table])

    def _keys(self, table: Table, prefix: bytes) -> Iterator[bytes]:
        cursor = self._transaction.cursor(db=self._tables[table])
        keys = cursor.iternext(values=False) if cursor.set_range(prefix) else iter(())
        return takewhile(lambda key: key.startswith(prefix), keys)

    def _items(self, table: Table, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._transaction.cursor(db=self._tables[table])
        if not cursor.set_range(prefix):
            return
        for key, value in cursor.iternext():
            if not key.startswith(prefix):
                return
            yield key, value

    def _scan(self, table: Table, prefix: bytes, kind: type[T]) -> Iterator[T]:
        for key, raw in self._items(table, prefix):
            try:
                value = unseal(key, raw, kind, partial(_describe, table))
            except CorruptRecord as error:
                self._problems[str(error)] = None
                continue
            yield value


def blob_sizes(manifest: Manifest) -> dict[str, int]:
    """The distinct digests of a manifest's files, and their sizes."""
    return {entry.digest: entry.size for entry in (*manifest.entries, *manifest.companions) if entry.digest}


def _describe(table: Table, key: bytes) -> str:
    if table in (Table.CHECKPOINTS, Table.MANIFESTS) and len(key) == 16:
        return f"{table.value[:-1]} {_id(key)}"
    if table is Table.JOBS:
        return f"job {key.decode(errors='replace')}"
    if table is Table.RUNS:
        return f"a run of job {key.partition(bytes(1))[0].decode(errors='replace')}"
    if table is Table.BLOBS:
        return f"blob {key.hex()}"
    return f"{table.value} {key.hex()}"
