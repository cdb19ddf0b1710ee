"""The index as typed records, inside one transaction.

    checkpoints   id                            → Checkpoint         its state is this record's, nobody else's
    manifests     id                            → Manifest
    by_job        job \\0 id                     → Brief
    by_name       BLAKE3-128(job \\0 name) n     → id                 n: the ordinal, 4 bytes, big-endian
    tags          tag                           → id
    blobs         digest                        → Blob               those that a manifest names
    inodes        inode number                  → digest
    garbage       digest                        → Garbage            its file may be there still, and has to go
    left          job \\0 BLAKE3-128(job \\0 name) → Left            collected, and perhaps in the working tree
    totals        "blobs"                       → Totals
    scans         digest                        → Scan               what loading it would do; may be forgotten
    jobs          job                           → Job
    runs          job \\0 run id                 → Run
    connections   name                          → Connection
    outbox        id                            → Replica            to be copied to an object store
    replicas      id                            → Replica            copied there, or come from there
    generations   BLAKE3-128(attempt \\0 name)   → how many checkpoints of that NAME the attempt has made
    held          id, id digest                 → nothing            is elsewhere; what of it is here, and counted
    sent          BLAKE3-128(storage \\0 job) digest → key of the object with these bytes that a part names

An id is the 16 bytes of its UUID, so the order of keys is the order of commits. The inodes' table has no device:
only an inode on the blobs' own device can be a blob, and device numbers change when the machine starts again. The last
row of a name in by_name outlives its checkpoint: a number is not used again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from uuid import UUID

from msgspec.structs import replace

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Checkpoint, InodeKey, Job, Manifest, Run, Scan

from . import briefs
from .briefs import Brief
from .codec import is_sealed
from .listings import Listings
from .replica_records import ReplicaRecords
from .tables import NAME_HASH, ORDINAL, Left, Remnant, Table, id_of, job_prefix, name_key


class Records(ReplicaRecords, Listings):
    """Valid inside the transaction alone."""

    # checkpoints

    def by_id(self, checkpoint: str, *, deleted: bool = False) -> Checkpoint | None:
        """The checkpoint of a full id, also of an id that it had before the other nodes' parts were joined with it."""
        found = super().by_id(checkpoint, deleted=deleted)
        if found is None and (replica := self.replica(checkpoint)) is not None and replica.became is not None:
            return super().by_id(replica.became, deleted=deleted)
        return found

    def manifest(self, checkpoint: str, *, deleted: bool = False) -> Manifest | None:
        head = self.by_id(checkpoint, deleted=deleted)
        if head is None:
            return None
        manifest = self._get(Table.MANIFESTS, UUID(head.id).bytes, Manifest)
        if manifest is None:
            raise CorruptRecord(f"The index has no manifest of checkpoint {checkpoint}.")
        return replace(manifest, checkpoint=head)

    def raw_manifests(self, after: str, at_most: int) -> list[tuple[str, bytes | None]]:
        """The manifests' rows (None: damaged) behind the id `after` ("": from the first one on), by their ids."""
        first = UUID(after).bytes + b"\0" if after else b""
        rows = islice(self._from(Table.MANIFESTS, first), at_most)
        return [(id_of(key), bytes(row) if is_sealed(key, row) else None) for key, row in rows]

    def newest_id(self) -> str | None:
        cursor = self._cursor(Table.CHECKPOINTS)
        return id_of(cursor.key()) if cursor is not None and cursor.last() else None

    def version(self, job: str, name: str, ordinal: int, *, deleted: bool = False) -> Checkpoint | None:
        """The `ordinal`-th checkpoint of (job, name), unless it is deleted; with `deleted` that one too."""
        if not 0 < ordinal < 1 << 32:
            return None
        key = name_key(job, name) + ORDINAL.pack(ordinal)
        found = self._get(Table.BY_NAME, key, bytes)
        return None if found is None else self.by_id(id_of(found), deleted=deleted)

    def newest(self, job: str, name: str, *, deleted: bool = False) -> Checkpoint | None:
        """The newest checkpoint of (job, name) that is not deleted; with `deleted` the newest of all."""
        versions = (self.version(job, name, n, deleted=deleted) for n in self._ordinals(job, name))
        return next((found for found in versions if found is not None), None)

    def last_ordinal(self, job: str, name: str) -> int:
        return next(self._ordinals(job, name), 0)

    def tagged(self, tag: str) -> Checkpoint | None:
        """The checkpoint that has the tag."""
        found = self._get(Table.TAGS, tag.encode(errors="surrogateescape"), bytes) if tag else None
        return None if found is None else self.by_id(id_of(found))

    def tags(self) -> list[str]:
        """All tags, in order."""
        return [key.decode(errors="surrogateescape") for key in self._keys(Table.TAGS, b"")]

    def offered(self, job: str, *, newest_first: bool = False) -> Iterator[tuple[str, Brief]]:
        """`briefs`, but for those that are a part alone of what several nodes write."""
        parts = self.parts()
        return (one for one in self.briefs(job, newest_first=newest_first) if one[0] not in parts)

    # changing them

    def add(self, manifest: Manifest, sealed: Iterable[tuple[InodeKey, str]]) -> None:
        """Record a new checkpoint: it, its manifest, one reference to each of its blobs, its sealed inodes.

        Of one that is elsewhere no blob counts yet, see `hold_blobs`.
        """
        head = manifest.checkpoint
        key = UUID(head.id).bytes
        name = name_key(head.job, head.name)
        self._drop_remnant(name + ORDINAL.pack(head.ordinal - 1))
        self._put(Table.BY_NAME, name + ORDINAL.pack(head.ordinal), key)
        self.put_checkpoint(head)
        if head.remote is None:
            self.hold(manifest, {}, sealed)
        else:
            self.put_away(manifest)
            self.seal_inodes(sealed)

    def hold(self, manifest: Manifest, known: Mapping[str, int], sealed: Iterable[tuple[InodeKey, str]]) -> None:
        """Put a manifest, one reference to each of its blobs but those of `known`, and its sealed inodes."""
        self._put(Table.MANIFESTS, UUID(manifest.checkpoint.id).bytes, manifest)
        self.claim({digest: size for digest, size in blob_sizes(manifest).items() if digest not in known})
        self.seal_inodes(sealed)

    def put_away(self, manifest: Manifest) -> None:
        """Put the manifest of a checkpoint that is elsewhere; what of it is counted already stays so."""
        self._put(Table.MANIFESTS, UUID(manifest.checkpoint.id).bytes, manifest)
        self.mark_away(manifest.checkpoint.id)

    def counted(self, manifest: Manifest) -> dict[str, int]:
        """The blobs that the checkpoint counts as its own, and their sizes."""
        sizes = blob_sizes(manifest)
        held = self.held(manifest.checkpoint.id)
        return sizes if held is None else {digest: size for digest, size in sizes.items() if digest in held}

    def merge(self, local: Manifest, whole: Manifest) -> None:
        """The checkpoint `local` is `whole` from now on: under another id, and with the files of others too."""
        old, new = local.checkpoint, whole.checkpoint
        mine = blob_sizes(local)
        self.put_away(whole)
        self.hold_blobs(new.id, {digest: size for digest, size in blob_sizes(whole).items() if digest in mine})
        self.put_checkpoint(new)
        self._put(Table.BY_NAME, name_key(new.job, new.name) + ORDINAL.pack(new.ordinal), UUID(new.id).bytes)
        for tag in new.tags:
            self.put_tag(tag, new.id)
        key = UUID(old.id).bytes
        self._delete(Table.CHECKPOINTS, key)
        self._delete(Table.MANIFESTS, key)
        self._delete(Table.BY_JOB, job_prefix(old.job) + key)
        self.disclaim(mine, {})

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Record what a checkpoint is now; the one way in which it changes."""
        key = UUID(checkpoint.id).bytes
        self._put(Table.CHECKPOINTS, key, checkpoint)
        brief_key = job_prefix(checkpoint.job) + key
        row = briefs.pack(brief_key, briefs.of(checkpoint))
        self._transaction.put(brief_key, row, db=self._tables[Table.BY_JOB])

    def put_tag(self, tag: str, checkpoint: str) -> None:
        self._put(Table.TAGS, tag.encode(errors="surrogateescape"), UUID(checkpoint).bytes)

    def drop_tag(self, tag: str) -> None:
        self._delete(Table.TAGS, tag.encode(errors="surrogateescape"))

    def remove(self, manifest: Manifest, inodes: Mapping[str, int], left: Left | None) -> None:
        """Forget a checkpoint and disclaim its blobs, whose inodes have these numbers.

        `left`: what of its files the working tree holds still, if it does.
        """
        head = manifest.checkpoint
        key = UUID(head.id).bytes
        self._delete(Table.CHECKPOINTS, key)
        self._delete(Table.MANIFESTS, key)
        self._delete(Table.BY_JOB, job_prefix(head.job) + key)
        self.remove_replica(head.id, head.job)
        if head.ordinal != self.last_ordinal(head.job, head.name):
            self._delete(Table.BY_NAME, name_key(head.job, head.name) + ORDINAL.pack(head.ordinal))
        if left is not None:
            self._put_left(job_prefix(head.job) + name_key(head.job, head.name), left)
        self.disclaim(self.counted(manifest), inodes)
        self.drop_held(head.id)

    def _put_left(self, key: bytes, left: Left) -> None:
        """Add to what other versions of the same name have left, which may have been collected in any order."""
        try:
            before = self._get(Table.LEFT, key, Left)
        except CorruptRecord:
            before = None
        files = {one[0]: one for one in (*(before.files if before else ()), *left.files)}
        self._put(Table.LEFT, key, Left(tuple(files.values())))

    def left(self, job: str, name: str) -> Left | None:
        return self._get(Table.LEFT, job_prefix(job) + name_key(job, name), Left)

    def all_left(self, job: str) -> set[tuple[str, int, int]]:
        """The files that a job's collected checkpoints may have left in the working tree."""
        return {file for left in self._scan(Table.LEFT, job_prefix(job), Left) for file in left.files}

    def left_but(self, job: str, names: Collection[str]) -> list[bytes]:
        """The keys of what collected checkpoints of other names than `names` left."""
        kept = {name_key(job, name) for name in names}
        return [key for key in self._keys(Table.LEFT, job_prefix(job)) if key[-NAME_HASH:] not in kept]

    def forget_left(self, job: str, names: Collection[str]) -> None:
        for key in self.left_but(job, names):
            self._delete(Table.LEFT, key)

    def remnants(self) -> Iterator[Remnant]:
        """What collected checkpoints have left, of all jobs."""
        for key, left in self._pairs(Table.LEFT, self._from(Table.LEFT, b""), Left):
            yield Remnant(key, left)
        for key, found in self._pairs(Table.BY_NAME, self._from(Table.BY_NAME, b""), bytes):
            if self._row(Table.CHECKPOINTS, found) is None:
                yield Remnant(key, id=id_of(found))

    def put_remnant(self, remnant: Remnant) -> None:
        """Put it back into a new index, after all that is there still."""
        if remnant.left is not None:
            self._put(Table.LEFT, remnant.key, remnant.left)
        elif self._row(Table.BY_NAME, remnant.key) is None:
            self._put(Table.BY_NAME, remnant.key, UUID(remnant.id).bytes)

    def scan(self, digest: str) -> Scan | None:
        return self._get(Table.SCANS, bytes.fromhex(digest), Scan)

    def put_scan(self, digest: str, scan: Scan) -> None:
        self._put(Table.SCANS, bytes.fromhex(digest), scan)

    # jobs and runs

    def job(self, name: str) -> Job | None:
        return self._get(Table.JOBS, job_prefix(name)[:-1], Job)

    def jobs(self) -> list[Job]:
        return list(self._scan(Table.JOBS, b"", Job))

    def put_job(self, job: Job) -> None:
        self._put(Table.JOBS, job_prefix(job.name)[:-1], job)

    def drop_job(self, name: str) -> None:
        """Forget a job and its runs. Its checkpoints are others' business."""
        for key in [*self._keys(Table.RUNS, job_prefix(name))]:
            self._delete(Table.RUNS, key)
        self.forget_left(name, ())
        self._delete(Table.JOBS, job_prefix(name)[:-1])

    def runs(self, job: str) -> list[Run]:
        return list(self._scan(Table.RUNS, job_prefix(job), Run))

    def run(self, job: str, run: str) -> Run | None:
        return self._get(Table.RUNS, job_prefix(job) + UUID(run).bytes, Run)

    def put_run(self, run: Run) -> None:
        self._put(Table.RUNS, job_prefix(run.job) + UUID(run.id).bytes, run)

    def drop_run(self, run: Run) -> None:
        self._delete(Table.RUNS, job_prefix(run.job) + UUID(run.id).bytes)

    # reading

    def _drop_remnant(self, key: bytes) -> None:
        """Drop the by_name row of a number whose checkpoint was collected, now that a higher one tells the number."""
        try:
            found = self._get(Table.BY_NAME, key, bytes)
        except CorruptRecord:
            return
        if found is not None and self._row(Table.CHECKPOINTS, found) is None:
            self._delete(Table.BY_NAME, key)

    def _ordinals(self, job: str, name: str) -> Iterator[int]:
        """The ordinals of (job, name), from the last to the first."""
        for key, _ in self._backwards(Table.BY_NAME, name_key(job, name)):
            yield int(ORDINAL.unpack(key[NAME_HASH:])[0])


def blob_sizes(manifest: Manifest) -> dict[str, int]:
    """The distinct digests of a manifest's files, and their sizes."""
    return {entry.digest: entry.size for entry in (*manifest.entries, *manifest.companions) if entry.digest}
