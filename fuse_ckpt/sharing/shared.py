"""A shared object store: the calls that a node makes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

from fuse_ckpt.errors import Corrupt, NotFound, StorageFailed, UnknownCheckpoint, UsageError
from fuse_ckpt.transfer import PROBE, Found, Place, Probed, Remote

from . import committing, deciding, documents, keys, listing, packing, receiving, removing, sending
from .registers import Registers
from .remembered import Remembered
from .removing import GRACE_NS
from .sending import Advance, Source, ignore
from .values import Decision, Format, GroupState, Part, PartFile, Registered, Standing, Tombstone, Union

REAP_NS = 24 * 3600 * 10**9  # that a group may stay partial


class SharedStore:
    """The shared store at `place`. Thread-safe; keeps no state but a memory of what never changes, in `cache`.

    `owner` names this node's store (any stable string): a store for exclusive use lets its owner alone write.
    Every method raises StorageFailed or a subclass where the object store does not do what it was asked for, and
    Corrupt where what lies there is not what fuse-ckpt writes. All of them can be called again after an interruption,
    by anybody, at any time; none leaves behind what could be taken for whole and is not.
    """

    def __init__(self, remote: Remote, place: Place, *, owner: str = "", cache: Path | None = None) -> None:
        self._remote = remote
        self.place = place
        self._owner = owner
        self._cache = cache
        self._registers = Registers(remote, place)
        self._format: Format | None = None
        self.problems: list[str] = []  # a sentence for each damaged decision that a listing had to leave out

    def establish(self, probed: Probed, now_ns: int, *, exclusive: bool = False) -> Format:
        """Make a shared store here, or find the one that is here already.

        Errors: StorageFailed (the probe found that the store ignores conditions, and it is not for exclusive use, or
        that it gives no parts of objects; or it is exclusively another's), UsageError (other things lie there),
        Corrupt.
        """
        if not probed.reads_parts:
            raise StorageFailed(
                f"{self.place}: its object store sends whole objects where parts are asked for: what is copied there "
                "could not be fetched; use another."
            )
        if not probed.creates_once and not exclusive:
            raise StorageFailed(
                f"{self.place}: of many who made one object at once {probed.winners} were told that they had: machines "
                "cannot share such a store; use another, or --exclusive to let this one alone write to it."
            )
        try:
            return self.open()
        except NotFound:
            self._refuse_strangers()
        mine = Format(now_ns, probed.creates_once, exclusive, self._owner if exclusive else "", uuid4().hex)
        key = self.place.key(keys.FORMAT)
        self._remote.claim(key, documents.written(mine), documents.SMALL)
        self._remote.settle(self.place.prefix, [key])
        return self.open()

    def open(self, *, write: bool = True) -> Format:
        """See that a shared store is here which this version understands. Every other method does so by itself.

        Errors: NotFound (there is none), StorageFailed (it is for another's exclusive use, and `write` is wanted),
        Corrupt.
        """
        if self._format is None:
            self._format = self._registers.format()
        if write and not self._is_mine(self._format):
            raise StorageFailed(
                f"{self.place} is for the exclusive use of {self._format.owner or 'another machine'}, for its object "
                "store ignores conditions: read from it, or share another store."
            )
        return self._format

    def _is_mine(self, found: Format) -> bool:
        """Whether we may write there, as far as it is for us to say."""
        return not found.exclusive or found.owner == self._owner

    def _refuse_strangers(self) -> None:
        ours = (self.place.key(keys.FORMAT), self.place.key(PROBE))  # what a killed probe has left is nobody's
        strange = next((key for key in self._remote.some(self.place.prefix) if not key.startswith(ours)), None)
        if strange is not None:
            raise UsageError(f"{self.place} holds other things ({strange}): name a path with nothing below it.")

    def _memory(self, job: str) -> Remembered:
        return Remembered(self._cache, self.open(write=False).id, job)

    def _pack(self, job: str) -> None:
        packing.pack(self._registers, job, listing.documents_of(self._registers, job, self._memory(job)))

    def _key(self, job: str, file: PartFile) -> str:
        """The whole key of a file's bytes; "" of an empty file."""
        return self._registers.key(job, file.key) if file.key else ""

    # writing

    def put_data(
        self,
        job: str,
        group: str,
        rank: int,
        source: Path,
        size: int,
        digest: str,
        advance: Advance = ignore,
        *,
        read_back: bool = False,
    ) -> str:
        """Send the file's bytes; returns the key for PartFile.key ("" for an empty file, which needs no object).

        Large files go in parts, several at once (about 100 MB of memory; send one large file at a time). What is there
        already, under this digest and with the right size, is not sent again. `advance` is told of bytes before they
        go; it may wait, to hold a speed, and what it raises ends the sending and leaves no object.
        Errors: CorruptBlob (the file does not have the digest: nothing appears).
        """
        self.open()
        if size == 0:
            return ""
        key = keys.data_key(keys.check_group(group), rank, digest)
        whole = self._registers.key(job, key)
        prefix = self.place.key(keys.job_prefix(job))
        sending.send(self._remote, whole, prefix, Source(source, size, digest), advance, read_back=read_back)
        return key

    def put_part(self, part: Part) -> Registered:
        """Create this rank's part, when all its data was put. Looks whether each object is there, with its size.

        Errors: Withdrawn (bytes of earlier groups are being deleted: `.groups`; put them as this group's own),
        StorageFailed (an object is missing, or has another size: put it again).
        """
        self.open()
        return committing.put_part(self._registers, part)

    def reconcile(self, job: str, group: str, *, rank: int | None = None) -> Standing:
        """How the group stands; where all parts are there and nobody has decided yet, decide. Adopts what it reads.

        To decide is to read every part. `rank`, for who has just made its part: only the one whose part came last
        decides, and a thousand nodes that end at once do not read a million parts. Whoever finds the group complete
        and undecided some seconds later (that node has died) asks again without it.
        """
        self.open()
        standing, decided = committing.reconcile(self._registers, job, keys.check_group(group), rank)
        if decided and packing.is_turn(group):
            with contextlib.suppress(StorageFailed, Corrupt):  # others will
                self._pack(job)
        return standing

    def abort(self, job: str, group: str, reason: str, now_ns: int) -> Standing:
        """Decide that the group never will be a checkpoint, unless it is decided already; how it stands then."""
        self.open()
        verdict = deciding.aborted(job, keys.check_group(group), reason, self._owner, now_ns)
        return committing.settle(self._registers, verdict)

    # reading

    def jobs(self) -> Sequence[str]:
        """The jobs that have anything here, by name."""
        self.open(write=False)
        names = self._remote.directories(self.place.key("j"))
        return sorted(job for name in names if (job := keys.job_of(name)) is not None)

    def list(self, job: str, *, aborted: bool = False) -> Sequence[Decision]:
        """The committed checkpoints that are not deleted, oldest first; the aborted groups behind them, if asked for.

        A LIST, and a GET for each decision that is neither in the cache nor in a pack; many of these are packed then.
        """
        packs = self._is_mine(self.open(write=False))
        found = listing.alive(self._registers, job, self._memory(job), self.problems, packs=packs)
        return [one for one in found if aborted or one.committed]

    def each(self, job: str) -> Iterator[Decision]:
        """As `list`, in no order, for who needs one after another: in a third of the memory."""
        return listing.each_committed(self._registers, job, self._memory(job), self.problems)

    def undecided(self, job: str) -> Sequence[Standing]:
        """The groups with parts and without a decision. Decides nothing."""
        self.open(write=False)
        return listing.undecided(self._registers, job)

    def standing(self, job: str, group: str) -> Standing:
        """As `reconcile`, but decides nothing."""
        self.open(write=False)
        return committing.standing(self._registers, job, keys.check_group(group))

    def find(self, job: str, checkpoint_id: str) -> Decision:
        """The committed checkpoint of that id. Errors: UnknownCheckpoint."""
        found = next((one for one in self.list(job) if one.id == checkpoint_id), None)
        if found is None:
            raise UnknownCheckpoint(checkpoint_id)
        return found

    def read(self, job: str, group: str) -> Union:
        """The files of all parts of a committed checkpoint. Errors: UnknownCheckpoint, Corrupt."""
        self.open(write=False)
        decision = committing.standing(self._registers, job, keys.check_group(group))
        if decision.state is not GroupState.REPLICATED or decision.decision is None:
            raise UnknownCheckpoint(group)
        ranks = [ref.rank for ref in decision.decision.parts]
        parts = committing.check_parts(decision.decision, self._registers.parts(job, group, ranks))
        return deciding.union_of(decision.decision, parts)

    def reusable(self, job: str, groups: Iterable[str]) -> set[str]:
        """Those of the groups whose data objects a new part may name: they are not being deleted."""
        self.open(write=False)
        wanted = set(groups)
        return wanted - committing.withdrawn(self._registers, job, wanted)

    def fetch_file(self, job: str, file: PartFile, path: Path, advance: Advance = ignore) -> None:
        """Get a file's bytes to `path`, by ranges, several at once, each byte once. It has its name only when its
        digest is right and it is on the disk; mode 0o600. One at a time for one `path`.

        What an interruption leaves beside `path` (`half_made`) is gone on with. `advance` is told of that, too.
        Errors: CorruptBlob, OSError; after these nothing is left.
        """
        receiving.fetch_file(self._remote, self._key(job, file), file, path, advance)

    def read_range(self, job: str, file: PartFile, start: int, end: int) -> bytes:
        """Bytes of a file, unproved: for who cannot wait for the whole."""
        end = min(end, file.size)
        if start >= end:
            return b""
        return bytes(self._remote.read_range(Found(self._key(job, file), file.size, 0), start, end))

    # taking away

    def tombstone(self, job: str, group: str, now_ns: int) -> None:
        """Delete the group: hidden at once and for ever. Its bytes go with `delete`."""
        self.open()
        self._registers.bury(Tombstone(job, keys.check_group(group), self._owner, now_ns))

    def delete(self, job: str, groups: Sequence[str], *, grace_ns: int = GRACE_NS) -> Sequence[str]:
        """Take away what deleted groups hold: decision, data, parts; returns those that were done.

        Only groups whose tombstone is older than `grace_ns`, by the object store's own clock; a data object that
        another group's part names stays until that one goes.
        """
        self.open()
        return removing.delete(self._registers, job, groups, grace_ns, self._memory(job))

    def reap(self, job: str, now_ns: int, *, older_than_ns: int = REAP_NS) -> Sequence[Standing]:
        """Decide the groups that are complete, abort those that are partial and whose newest part is older than that
        (by the object store's clock); how those stand now.

        To be called now and then, by any node: it also goes on with deletions that were interrupted, takes away what
        aborted groups hold, and keeps first listings short. A few listings; nothing waits for it.
        """
        self.open()
        found = committing.reap(self._registers, job, self._owner, now_ns, older_than_ns)
        removing.sweep(self._registers, job, self._owner, now_ns, older_than_ns, self._memory(job))
        removing.forget(self._registers, job)
        self._pack(job)
        return found

    # the catalog, a table that others read

    @property
    def catalog(self) -> Place:
        return Place(self.place.bucket, self.place.key(keys.CATALOG))

    def has_catalog(self) -> bool:
        """Whether there is anything of one. One request."""
        return bool(self._remote.some(self.catalog.prefix))

    def drop_catalog(self) -> None:
        """Take away all that there is of it."""
        self.open()
        self._remote.delete(sorted(self._remote.list(self.catalog.prefix)))

    def decision_key(self, job: str, group: str) -> str:
        """Where the decision on a group lies, below this store's place."""
        return f"{keys.job_prefix(job)}/{keys.decision_key(group)}"
