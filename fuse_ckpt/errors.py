"""Every error that fuse_ckpt raises on purpose.

    FuseCkptError                1  failed
    ├── UsageError               2  the request cannot be understood or makes no sense
    │   ├── InvalidJobName
    │   ├── InvalidReference
    │   ├── InvalidTag
    │   ├── InvalidPolicy
    │   ├── InvalidName
    │   └── InvalidMountPoint
    ├── NotFound                 3
    │   ├── UnknownCheckpoint
    │   ├── UnknownConnection
    │   ├── UnknownFile
    │   └── UnknownJob
    ├── Corrupt                  4  stored bytes are not what was stored
    │   ├── CorruptRecord
    │   └── CorruptBlob
    ├── Busy                     5  leased, pinned, locked, mounted, still bound
    │   ├── JobExists
    │   ├── JobMounted
    │   ├── CheckpointLeased
    │   ├── CheckpointPinned
    │   ├── TagTaken
    │   ├── Collecting
    │   └── StillBound
    ├── StoreUnusable            1  the store cannot be opened here
    ├── CommitFailed             1  a draft could not be committed; it stays in pending/
    │   └── NotWritten
    ├── StorageFailed            1  an object store refuses, fails, or does not answer
    │   ├── CredentialsRefused
    │   ├── PermissionRefused
    │   ├── BucketMissing
    │   ├── Unreachable
    │   └── Withdrawn
    ├── MountFailed              1  this machine cannot mount, or the mount went wrong
    ├── NotReached               1  what was waited for did not come
    └── NotStarted             125  `training run` failed before its command began
        ├── NotExecutable      126  the command cannot be executed, as a shell says it
        └── NotThere           127  the command is not there, as a shell says it

Every message is one line: what is wrong, and what to do about it. The exit code of a class is its contract with the
command line; how the kernel sees it is decided in one place only, `fuse_ckpt.fuse.errno`.
"""

from __future__ import annotations


class FuseCkptError(Exception):
    """Base of all errors raised on purpose; `str()` of it is the line that a person reads."""

    exit_code = 1


class UsageError(FuseCkptError):
    """The request cannot be understood, or makes no sense."""

    exit_code = 2


class InvalidJobName(UsageError):
    """A job's name is empty, too long, or has a character that no directory or reference can carry."""


class InvalidReference(UsageError):
    """A reference to a checkpoint is empty or fits more than one; the message lists the candidates."""


class InvalidTag(UsageError):
    """A tag could be taken for another kind of reference, or has a character that none can carry."""


class InvalidPolicy(UsageError):
    """A retention policy does not follow its grammar; the message names the term."""


class InvalidName(UsageError):
    """A connection or a pushed checkpoint cannot be called that."""


class InvalidMountPoint(UsageError):
    """The mount point is missing, not a directory, not empty, or mounted already."""


class NotFound(FuseCkptError):
    """What was asked for is not in the store."""

    exit_code = 3


class UnknownCheckpoint(NotFound):
    """No checkpoint answers to the reference (or it was deleted)."""

    def __init__(self, reference: str) -> None:
        super().__init__(f"Unknown Checkpoint: {reference}")
        self.reference = reference


class UnknownConnection(NotFound):
    """No storage connection of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'Unknown storage connection: {name} (see "fuse-ckpt storage list")')
        self.name = name


class UnknownFile(NotFound):
    """A checkpoint has no file of that name, or several and none was named."""


class UnknownJob(NotFound):
    """No job of that name."""

    def __init__(self, job: str) -> None:
        super().__init__(f'Unknown training job: {job} (see "fuse-ckpt training list") {{"code":"ET0002"}}')
        self.job = job


class Corrupt(FuseCkptError):
    """Bytes in the store are not the bytes that were stored."""

    exit_code = 4


class CorruptRecord(Corrupt):
    """A record of the index fails its checksum."""


class CorruptBlob(Corrupt):
    """A blob is missing, or its bytes do not have the digest that names it."""


class Busy(FuseCkptError):
    """Somebody is using what the request would change."""

    exit_code = 5


class JobExists(Busy):
    """`training run` without `--restart` of a job that has run already."""

    def __init__(self, job: str) -> None:
        super().__init__(
            f"Training job already exists: {job} (--restart continues it, another name starts afresh)"
            ' {"code":"ET0009"}'
        )
        self.job = job


class JobMounted(Busy):
    """Another daemon serves this job."""


class CheckpointLeased(Busy):
    """A session reads this checkpoint as its input."""


class CheckpointPinned(Busy):
    """A person has said that this checkpoint stays."""


class TagTaken(Busy):
    """Another checkpoint has the tag; the message names it."""


class Collecting(Busy):
    """Another process takes away what nothing names any more."""


class StillBound(Busy):
    """A directory of the mount is in use or bind-mounted elsewhere; its daemon goes on serving it."""


class StoreUnusable(FuseCkptError):
    """The store cannot be opened: another user's, too new, not a store, or on a filesystem that cannot hold one."""


class CommitFailed(FuseCkptError):
    """A sealed draft could not be committed; its links and journal stay in pending/ for the next attempt."""


class NotWritten(CommitFailed):
    """The disk could not write the bytes of a file. The kernel says so once and may drop them: what is read of the file
    from then on need not be what was written."""

    def __init__(self, name: str, why: str = "an error of the disk") -> None:
        super().__init__(f"{name} could not be written to the disk: {why}")
        self.name, self.why = name, why


class StorageFailed(FuseCkptError):
    """An object store refuses what was asked of it, fails, or answers what no object store would."""


class CredentialsRefused(StorageFailed):
    """The object store does not know the credentials, or there are none."""


class PermissionRefused(StorageFailed):
    """The object store knows who asks, and does not let them."""


class BucketMissing(StorageFailed):
    """There is no such bucket (container)."""


class PartsRefused(StorageFailed):
    """The object store sends the whole of an object where a part of it is asked for."""


class Unreachable(StorageFailed):
    """Nobody answers at the endpoint, or no longer."""


class Withdrawn(StorageFailed):
    """Bytes that a part names belong to earlier groups, and those are being deleted."""

    def __init__(self, groups: frozenset[str]) -> None:
        super().__init__(
            f"The object store is giving up the bytes of {', '.join(sorted(groups))}, which a newer checkpoint names: "
            "send them again."
        )
        self.groups = groups


class MountFailed(FuseCkptError):
    """This machine cannot mount (no /dev/fuse, no fusermount3, no privilege), or the mount went wrong."""


class NotReached(FuseCkptError):
    """What was waited for did not come: it failed, or the time was up."""


class NotStarted(FuseCkptError):
    """`training run` failed before its command began."""

    exit_code = 125


class NotExecutable(NotStarted):
    """The command of `training run` cannot be executed."""

    exit_code = 126


class NotThere(NotStarted):
    """The command of `training run` is not there."""

    exit_code = 127
