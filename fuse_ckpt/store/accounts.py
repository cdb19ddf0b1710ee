"""The part of the store that counts: who holds how many bytes, what would come free, and what a policy says."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.model import Checkpoint, Job, Manifest, Stage, State

from .blobs import stat_or_none
from .elsewhere import Elsewhere
from .listings import Tally
from .records import Records, blob_sizes
from .retention import Candidate, Decision, Policy, choose, decide, parse_policy
from .tables import Totals

TRASH_TTL_NS = 7 * 86_400 * 10**9
PART = "the other nodes' parts of it are not there yet"
BLOCK = 512  # bytes; what st_blocks counts, whatever the filesystem
_AT_ONCE = 500  # manifests that are looked through in one transaction
_FIRST = 128  # candidates that are looked at first; most often they are enough


class Space(Struct, frozen=True):
    """What becomes of the bytes of checkpoints that are taken away, in bytes of the disk."""

    free: int = 0  # come free
    held: int = 0  # stay, for a working tree holds the files
    shared: int = 0  # stay, for other checkpoints hold them


class Plan(Struct, frozen=True):
    """What is to be removed, and why. Nothing in it has happened yet."""

    decisions: tuple[Decision, ...] = ()  # of policies, on every checkpoint that they concern
    trash: tuple[tuple[Checkpoint, int], ...] = ()  # what is deleted already, and when its time has passed
    expired: tuple[Checkpoint, ...] = ()  # in the trash, and their time has passed
    pressed: tuple[Checkpoint, ...] = ()  # go before their time, for the disk is nearly full

    @property
    def removed(self) -> list[Checkpoint]:
        """What goes to the trash by a policy."""
        return [one.checkpoint for one in self.decisions if not one.keep]


class Accounts(Elsewhere):
    """Counting; see `Store` for what all methods have in common."""

    def tallies(self) -> dict[str, Tally]:
        """The checkpoints of every job that has some in numbers; those of job "" were pushed."""
        return self._index.read(Records.tallies)

    def tally(self, job: str) -> Tally:
        """The checkpoints of one job in numbers."""
        return self._index.read(lambda records: records.tally(job))

    def totals(self) -> Totals:
        """How many blobs there are, and their bytes; and how often some were taken away so far."""
        return self._index.read(Records.totals)

    # the trash

    def trash(self, job: str | None = None) -> list[Checkpoint]:
        """The deleted checkpoints, of one job or of all, the first deleted first."""
        deleted = frozenset({State.DELETED})
        found = self._index.read(lambda records: list(records.newest_first(job, deleted)))
        return sorted(found, key=lambda one: (one.deleted_ns or 0, one.id))

    def expiries(self, deleted: Iterable[Checkpoint], ttl_ns: int | None = None) -> dict[str, int]:
        """id → when a checkpoint of the trash may be collected. `ttl_ns`: in place of what the jobs say."""
        jobs = {job.name: job for job in self.jobs()}
        return {
            one.id: (one.deleted_ns or 0) + (_ttl(jobs.get(one.job)) if ttl_ns is None else ttl_ns) for one in deleted
        }

    def expired(self, now_ns: int, job: str | None = None, ttl_ns: int | None = None) -> list[Checkpoint]:
        """What of the trash may be collected by now."""
        trash = self.trash(job)
        expiries = self.expiries(trash, ttl_ns)
        return [one for one in trash if expiries[one.id] <= now_ns]

    # space

    def space(self, checkpoints: Iterable[str]) -> Space:
        """What becomes of the bytes of these checkpoints (ids, deleted ones or not) once they and the trash are
        collected."""
        wanted = set(checkpoints)
        named, references = self._index.read(lambda records: _names_and_references(wanted, records))
        free = held = shared = 0
        for digest, count in named.items():
            found = stat_or_none(self.layout.blob(digest))
            size = 0 if found is None else found.st_blocks * BLOCK
            if references.get(digest, 0) > count:
                shared += size
            elif found is not None and found.st_nlink > 1:
                held += size
            else:
                free += size
        return Space(free, held, shared)

    def frees(self, checkpoints: Iterable[str]) -> dict[str, int]:
        """id → the bytes that come free once that checkpoint alone, deleted or not, and the trash are collected."""
        trash = [one.id for one in self.trash()]
        gone = Counter(digest for digests, _ in self._named_by(trash).values() for digest in digests)
        deleted = set(trash)
        return {
            one: sum(self._freed_by(d) for d in digests if references.get(d, 0) <= gone[d] + (one not in deleted))
            for one, (digests, references) in self._named_by(checkpoints).items()
        }

    def _named_by(self, checkpoints: Iterable[str]) -> dict[str, tuple[frozenset[str], dict[str, int]]]:
        """id → the digests that it names, and how many checkpoints name each; in short transactions."""
        found: dict[str, tuple[frozenset[str], dict[str, int]]] = {}
        rest = iter(checkpoints)
        while few := list(islice(rest, _AT_ONCE)):
            found |= self._index.read(partial(_named, few))
        return found

    def decisions(self, policy: Policy, now_ns: int, job: str | None = None) -> list[Decision]:
        """What a policy says of the checkpoints of one job, or of all."""
        in_use = {**self._index.read(_outgoing), **self.leased()}
        states = frozenset(State) - {State.DELETED}
        every = self._index.read(lambda records: [one for one in records.checkpoints(job) if one.state in states])
        parts = self._index.read(Records.parts)
        found = [one for one in every if one.remote is None and one.id not in parts]  # what is elsewhere takes no room
        copies = self._index.read(lambda records: _copies(found, records))
        return [
            replace(one, reason=f"{one.reason}; its copy in {copies[one.checkpoint.id]} stays")
            if not one.keep and one.checkpoint.id in copies
            else one
            for one in decide(found, policy, in_use, now_ns)
        ] + [Decision(one, True, PART) for one in every if one.id in parts]

    def plan(
        self, now_ns: int, job: str | None = None, policy: Policy | None = None, ttl_ns: int | None = None,
        min_free: int = 0,
    ) -> Plan:  # fmt: skip
        """What is to be removed of one job, or of all: by `policy`, else by those that the jobs have of their own.

        `ttl_ns`: how long the trash is kept, in place of what the jobs say. `min_free`: bytes of the disk to be free;
        for them goes the trash first, then, where no policy says what to keep, the oldest checkpoints.
        Errors: UnknownJob.
        """
        jobs = self.jobs() if job is None else [self.job(job)]
        decisions = self._decided(jobs, now_ns, policy, job)
        removed = [replace(one.checkpoint, deleted_ns=now_ns) for one in decisions if not one.keep]
        trash = self.trash(job)
        expiries = self.expiries([*trash, *removed], ttl_ns)
        expired = [one for one in [*trash, *removed] if expiries[one.id] <= now_ns]
        plan = Plan(tuple(decisions), tuple((one, expiries[one.id]) for one in trash), tuple(expired))
        needed = min_free - self._free() if min_free else 0
        if needed <= 0:
            return plan
        going = {one.id for one in expired}
        ruled = {one.checkpoint.job for one in decisions}
        others = [self.decisions(Policy(), now_ns, one.name) for one in jobs if one.name not in ruled]
        oldest = sorted((one.checkpoint for each in others for one in each if not one.keep), key=lambda one: one.id)
        old = [one for one in [*trash, *removed, *oldest] if one.id not in going]
        return replace(plan, pressed=tuple(self.to_free(needed - self.space(going).free, old)))

    def _decided(self, jobs: Iterable[Job], now_ns: int, policy: Policy | None, job: str | None) -> list[Decision]:
        """By `policy` on the checkpoints of `job` (None: of all), else by those that the jobs have of their own."""
        if policy is not None:
            return self.decisions(policy, now_ns, job)
        ruled = [(one.name, parse_policy(one.retain)) for one in jobs if one.retain is not None]
        return [decision for name, own in ruled for decision in self.decisions(own, now_ns, name)]

    def _free(self) -> int:
        disk = os.statvfs(self.layout.root)
        return disk.f_bavail * disk.f_frsize

    def to_free(self, needed: int, removable: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Those of `removable` that must be collected to free `needed` bytes: the first of them, but none in vain."""
        count = _FIRST
        while True:
            chosen, freed = self._choose(removable[:count], needed)
            if freed >= needed or count >= len(removable):
                return chosen
            count *= 4

    def _choose(self, removable: Sequence[Checkpoint], needed: int) -> tuple[list[Checkpoint], int]:
        def work(records: Records) -> tuple[list[Candidate], dict[str, int]]:
            manifests = [records.manifest(one.id, deleted=True) for one in removable]
            found = [Candidate(one.checkpoint.id, frozenset(blob_sizes(one))) for one in manifests if one is not None]
            return found, records.references({digest for one in found for digest in one.digests})

        candidates, references = self._index.read(work)
        disk = {digest: self._freed_by(digest) for digest in references}
        ids = set(choose(candidates, references, disk, needed))
        left = Counter(references)
        for one in candidates:
            left.subtract(one.digests if one.id in ids else ())
        return [one for one in removable if one.id in ids], sum(disk[d] for d, n in left.items() if n <= 0)

    def _freed_by(self, digest: str) -> int:
        """Bytes that come free with a blob's file."""
        found = stat_or_none(self.layout.blob(digest))
        return found.st_blocks * BLOCK if found is not None and found.st_nlink == 1 else 0


def _names_and_references(wanted: set[str], records: Records) -> tuple[Counter[str], dict[str, int]]:
    """How often the wanted and the deleted checkpoints name each digest of the wanted ones, and how often all do."""
    manifests = (records.manifest(one, deleted=True) for one in wanted)
    named = _counted(manifests)
    references = records.references(named)
    contested = {digest for digest, count in named.items() if references.get(digest, 0) > count}
    if contested:
        trash = (one for one in records.newest_first(None, {State.DELETED}) if one.id not in wanted)
        also = _counted(records.manifest(one.id, deleted=True) for one in trash)
        named.update({digest: also[digest] for digest in contested})
    return named, references


def _named(checkpoints: Iterable[str], records: Records) -> dict[str, tuple[frozenset[str], dict[str, int]]]:
    manifests = {one: records.manifest(one, deleted=True) for one in checkpoints}
    digests = {one: frozenset(blob_sizes(manifest)) for one, manifest in manifests.items() if manifest is not None}
    return {one: (named, records.references(named)) for one, named in digests.items()}


def _counted(manifests: Iterable[Manifest | None]) -> Counter[str]:
    return Counter(digest for one in manifests if one is not None for digest in blob_sizes(one))


def _outgoing(records: Records) -> dict[str, str]:
    """The checkpoints whose bytes are still to be copied, by id: who else would have them."""
    waiting = records.outbox()
    return {checkpoint: f"the copy to {one.storage}" for checkpoint, one in waiting if one.is_unsent}


def _copies(checkpoints: Iterable[Checkpoint], records: Records) -> dict[str, str]:
    """Those that are in an object store, too: by id, in which."""
    found = ((one.id, records.replica(one.id)) for one in checkpoints)
    return {one: copy.storage for one, copy in found if copy is not None and copy.stage is Stage.REPLICATED}


def _ttl(job: Job | None) -> int:
    return TRASH_TTL_NS if job is None or job.trash_ttl_ns is None else job.trash_ttl_ns
