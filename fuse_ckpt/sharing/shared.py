"""A shared object store: the calls that a node makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fuse_ckpt.transfer import Place, Probed, Remote

from .values import Decision, Format, Part, PartFile, Registered, Standing, Union

GRACE_NS = 3600 * 10**9  # from a tombstone to the first byte that goes
REAP_NS = 24 * 3600 * 10**9  # that a group may stay partial

Advance = Callable[[int], None]


class SharedStore:
    """The shared store at `place`. Thread-safe; keeps no state but a cache of what never changes, in `cache`.

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

    def establish(self, probed: Probed, now_ns: int, *, exclusive: bool = False) -> Format:
        """Make a shared store here, or find the one that is here already.

        Errors: StorageFailed (the probe found that the store ignores conditions, and it is not for exclusive use;
        or it is exclusively another's), UsageError (other things lie there), Corrupt.
        """
        raise NotImplementedError

    def open(self, *, write: bool = True) -> Format:
        """See that a shared store is here which this version understands. To be called before the other methods.

        Errors: NotFound (there is none), StorageFailed (it is for another's exclusive use, and `write` is wanted),
        Corrupt.
        """
        raise NotImplementedError

    # writing

    def put_data(
        self,
        job: str,
        group: str,
        rank: int,
        source: Path,
        size: int,
        digest: str,
        advance: Advance = lambda count: None,
        *,
        read_back: bool = False,
    ) -> str:
        """Send the file's bytes; returns the key for PartFile.key ("" for an empty file, which needs no object).

        Large files go in parts, several at once (about 100 MB of memory; send one large file at a time). What is there
        already, under this digest and with the right size, is not sent again. `advance` is told of bytes before they
        go; it may wait, to hold a speed, and what it raises ends the sending and leaves no object.
        Errors: CorruptBlob (the file does not have the digest: nothing appears).
        """
        raise NotImplementedError

    def put_part(self, part: Part) -> Registered:
        """Create this rank's part, when all its data was put. Looks whether each object is there, with its size.

        Errors: Withdrawn (bytes of earlier groups are being deleted: `.groups`; put them as this group's own),
        StorageFailed (an object is missing, or has another size: put it again).
        """
        raise NotImplementedError

    def reconcile(self, job: str, group: str) -> Standing:
        """How the group stands; where all parts are there and nobody has decided yet, decide. Adopts what it reads."""
        raise NotImplementedError

    def abort(self, job: str, group: str, reason: str, now_ns: int) -> Standing:
        """Decide that the group never will be a checkpoint, unless it is decided already; how it stands then."""
        raise NotImplementedError

    # reading

    def jobs(self) -> list[str]:
        """The jobs that have anything here, by name."""
        raise NotImplementedError

    def list(self, job: str, *, after: str = "", aborted: bool = False) -> list[Decision]:
        """The committed checkpoints (and the aborted groups, if asked for) that are not deleted, in the order of their
        groups; those alone whose group comes behind `after`. One LIST, and a GET for each that is not in the cache."""
        raise NotImplementedError

    def undecided(self, job: str) -> list[Standing]:
        """The groups with parts and without a decision. Decides nothing."""
        raise NotImplementedError

    def standing(self, job: str, group: str) -> Standing:
        """As `reconcile`, but decides nothing."""
        raise NotImplementedError

    def find(self, job: str, checkpoint_id: str) -> Decision:
        """The committed checkpoint of that id. Errors: UnknownCheckpoint."""
        raise NotImplementedError

    def read(self, job: str, group: str) -> Union:
        """The files of all parts of a committed checkpoint. Errors: UnknownCheckpoint, Corrupt."""
        raise NotImplementedError

    def reusable(self, job: str, groups: Iterable[str]) -> set[str]:
        """Those of the groups whose data objects a new part may name: committed, and not being deleted."""
        raise NotImplementedError

    def fetch_file(self, job: str, file: PartFile, path: Path, advance: Advance = lambda count: None) -> None:
        """Get a file's bytes to `path`, by ranges, several at once, each byte once. It has its name only when its
        digest is right and it is on the disk; mode 0o600. Errors: CorruptBlob, OSError."""
        raise NotImplementedError

    def fetch_into(self, job: str, file: PartFile, fd: int, advance: Advance = lambda count: None) -> None:
        """As `fetch_file`, into an open, empty file: it may be read as far as `advance` was told, in order, but is not
        proved until this returns. Errors: CorruptBlob, OSError."""
        raise NotImplementedError

    def read_range(self, job: str, file: PartFile, start: int, end: int) -> bytes:
        """Bytes of a file, unproved: for who cannot wait for the whole."""
        raise NotImplementedError

    # taking away

    def tombstone(self, job: str, group: str, now_ns: int) -> None:
        """Delete the group: hidden at once and for ever. Its bytes go with `delete`."""
        raise NotImplementedError

    def delete(self, job: str, groups: Sequence[str], *, grace_ns: int = GRACE_NS) -> list[str]:
        """Take away what deleted groups hold: decision, data, parts; returns those that were done.

        Only groups whose tombstone is older than `grace_ns`, by the object store's own clock; a data object that
        another group's part names stays until that one goes.
        """
        raise NotImplementedError

    def reap(self, job: str, now_ns: int, *, older_than_ns: int = REAP_NS) -> list[Standing]:
        """Decide the groups that are complete, abort those that are partial and whose newest part is older than that
        (by the object store's clock); how those stand now."""
        raise NotImplementedError
