"""The values that travel through the house. No I/O, no clock: anything here can be made in a test by hand.

Times are integers of nanoseconds since the epoch, UTC. Sizes are bytes. Digests are BLAKE3-256 in lower-case hex (64
characters). Paths are `str` with `/` between the parts and the kernel's undecodable bytes as surrogate escapes.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from fuse_ckpt.copies import Replica as Replica
from fuse_ckpt.copies import Replication as Replication
from fuse_ckpt.copies import Stage as Stage
from fuse_ckpt.errors import InvalidJobName

JOB_NAME_MAX = 200  # bytes; a job is a directory's name, and a lock's name that adds a suffix (NAME_MAX is 255)


class State(StrEnum):
    """Where a checkpoint stands. Only `AVAILABLE` ones are ever offered for resuming."""

    PENDING = "pending"
    AVAILABLE = "available"
    FAILED = "failed"
    DELETED = "deleted"


class Kind(StrEnum):
    """What an entry of a manifest is."""

    FILE = "file"
    SYMLINK = "symlink"
    DIRECTORY = "directory"


class Shape(StrEnum):
    """What a unit of the output directory is: one file, one directory, or the Hugging Face set at the root."""

    FLAT = "flat"
    DIRECTORY = "directory"
    ROOT = "root"


class Unit(Struct, frozen=True):
    """The files that become one checkpoint together, named by their path below the output directory's root.

    `name` is the NAME that people see: "ckpt.pt", "checkpoint-500", "checkpoints/step_5", "" for the root checkpoint.
    """

    name: str
    shape: Shape

    @property
    def prefix(self) -> str:
        """The directory, below the output root, that the checkpoint's own root stands for ("" for the output root)."""
        if self.shape is Shape.DIRECTORY:
            return self.name
        return self.name.rpartition("/")[0] if self.shape is Shape.FLAT else ""


class Entry(Struct, frozen=True, omit_defaults=True):
    """One file, symlink or directory of a checkpoint. `path` is relative to the checkpoint's root."""

    path: str
    kind: Kind
    mode: int  # permission bits alone: 0o644
    mtime_ns: int
    size: int = 0  # files only
    digest: str = ""  # files only
    target: str = ""  # symlinks only


class Metadata(Struct, frozen=True, omit_defaults=True):
    """What a checkpoint says of its training. None: it does not say."""

    step: int | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    model: str | None = None
    version: str | None = None
    inference_ready: bool = False
    resumable: bool = False  # holds optimizer state
    weights: bool = False  # holds model weights
    format: str | None = None  # how its weights are stored: "torch zip", "safetensors", "torch distributed", …
    tensors: int | None = None  # how many all its files hold, optimizer state with them
    epoch: float | None = None  # a part of one where it was saved within
    notes: tuple[str, ...] = ()  # what could not be read, one plain sentence each


class Origin(Struct, frozen=True, omit_defaults=True):
    """Where a pushed checkpoint came from: files of this machine, or a path of an object store."""

    local: tuple[str, ...] = ()
    provider: str | None = None  # the name of the connection
    path: str | None = None  # bucket/prefix


class Provider(StrEnum):
    """What kind of object store a connection leads to. R2 and MinIO speak S3; FILE is a directory."""

    S3 = "s3"
    GCS = "gcs"
    AZURE = "azure"
    R2 = "r2"
    MINIO = "minio"
    FILE = "file"


class Connection(Struct, frozen=True, omit_defaults=True):
    """A way to an object store, under a name. It never holds credentials, only the path of a file that does."""

    name: str
    provider: Provider
    created_ns: int
    endpoint: str | None = None
    bucket: str | None = None
    region: str | None = None
    root: str | None = None  # FILE only: the directory that its paths begin at
    credentials_file: str | None = None  # None: the provider's usual chain of environment, profile, instance
    creates_once: bool | None = None  # what a probe found: of two conditional creates, one wins
    probed_ns: int | None = None
    exclusive: bool = False  # one machine alone writes there: no condition is needed
    attached: str | None = None  # BUCKET/PREFIX ("": all of a directory) whose checkpoints are listed here


class Checkpoint(Struct, frozen=True, omit_defaults=True):
    """A committed checkpoint, without its entries.

    `job` is "" for a pushed one, whose NAME is a reference of its own. What it holds never changes once it is
    `settled`; what people say of it (state, tags, pin) does.
    """

    id: str  # UUIDv7, canonical 36 characters; id order is commit order
    job: str
    name: str  # the unit's NAME
    shape: Shape
    ordinal: int  # this is the n-th checkpoint of (job, name), from 1
    node: str
    state: State
    created_ns: int  # its last member's close
    committed_ns: int
    size: int
    files: int
    metadata: Metadata
    parent: str | None = None  # id of the checkpoint that its run was resumed from
    run: str | None = None  # id of the run that wrote it
    failure: str | None = None  # why it is `failed`
    draft: str = ""  # the sealed draft that it was committed from: a crash must not commit one twice
    revision: int = 1  # rises with each amendment: a file that came late
    settled: bool = False  # somebody has relied on it (leased, fetched, exported): it is amended no more
    promoted: bool = False  # a person overruled `failed`; `failure` still says why it was
    tags: tuple[str, ...] = ()
    pinned: bool = False
    deleted_ns: int | None = None  # when it was deleted; the bytes go some time later
    deleted_from: State | None = None  # what it was until then, and is again when it is restored
    origin: Origin | None = None  # pushed ones only
    remote: str | None = None  # the connection that has its bytes, of which some or all are not here
    described: bool = False  # `remote` ones only: what it is made of is known here

    @property
    def place(self) -> str:
        """What people know it by, which is a reference too: JOB/NAME@N, or NAME@N where it was pushed."""
        return f"{self.job}/{self.name}@{self.ordinal}" if self.job else f"{self.name}@{self.ordinal}"

    @property
    def unit(self) -> Unit:
        return Unit(self.name, self.shape)


class Manifest(Struct, frozen=True):
    """A checkpoint and what it is made of; also the form of manifests/<id>.json.

    `companions` (a `latest` file, helper scripts, symlinks beside the unit) have paths relative to the output
    directory's root; they show in the layout view only.
    """

    checkpoint: Checkpoint
    entries: tuple[Entry, ...]
    companions: tuple[Entry, ...] = ()


class InodeKey(Struct, frozen=True, order=True):
    """A backing inode on the store's disk."""

    dev: int
    ino: int


class NewCheckpoint(Struct, frozen=True):
    """All that the store needs to publish a checkpoint whose blobs it has adopted already."""

    job: str
    unit: Unit
    node: str
    created_ns: int
    metadata: Metadata
    entries: tuple[Entry, ...]
    companions: tuple[Entry, ...] = ()
    sealed: tuple[tuple[InodeKey, str], ...] = ()  # inodes that are the blob of that digest from now on
    parent: str | None = None
    run: str | None = None
    failure: str | None = None  # set: the checkpoint is published as `failed`
    draft: str = ""
    origin: Origin | None = None


SCAN_RULES = 1  # the version of the rules in fuse_ckpt.contents; what an older one found is not used


class Scan(Struct, frozen=True, omit_defaults=True):
    """What loading a file with pickles in it would import and call, found out without loading it.

    Names are `module.name`. `allowed` and `others` are what its pickles import, by the list of `fuse_ckpt.contents`.
    """

    rules: int  # SCAN_RULES as they were
    pickles: int = 0
    allowed: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    called: tuple[str, ...] = ()  # of the others: not imported only
    oddities: tuple[str, ...] = ()  # what it would do besides, each what follows "it"
    doubts: tuple[str, ...] = ()  # why it cannot be told, each what follows "it"
    by: str = ""  # how it was looked at: a file is read as its name, and other files, say

    @property
    def safe(self) -> bool:
        return not (self.others or self.oddities or self.doubts)


class RunStatus(StrEnum):
    """How a run of a training job stands."""

    IN_PROGRESS = "in progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Provenance(Struct, frozen=True, omit_defaults=True):
    """Where a run was started, by whom, and from which state of its sources; None: it could not be told."""

    host: str | None = None
    user: str | None = None
    directory: str | None = None  # the working directory of the command
    revision: str | None = None  # of the git repository that `directory` lies in, in hex
    dirty: bool | None = None  # tracked files there differ from `revision`
    versions: dict[str, str] = {}  # of Python, this program and known libraries beside the command, by name


class Run(Struct, frozen=True, omit_defaults=True):
    """One run of a job's command."""

    id: str  # UUIDv7
    job: str
    command: tuple[str, ...]
    started_ns: int
    status: RunStatus
    node: str = "0"
    parent: str | None = None  # the checkpoint it was resumed from
    ended_ns: int | None = None
    exit_code: int | None = None  # 128 + n where signal n ended it
    provenance: Provenance | None = None  # None: the run is older than the recording of it
    replication: Replication | None = None  # as which node of which attempt it ran


class Job(Struct, frozen=True, omit_defaults=True):
    """A training job: a name, its working tree, its runs and its checkpoints."""

    name: str
    created_ns: int
    retain: str | None = None  # the retention policy that its mounts apply, in the grammar of `--retain`
    trash_ttl_ns: int | None = None  # how long its deleted checkpoints can be restored; None: a week
    min_free: int | None = None  # bytes of the disk that its mounts keep free
    replication: Replication | None = None  # where its checkpoints are copied to
    units: tuple[str, ...] = ()  # the globs by which its last mount told its units


def check_job_name(name: str) -> str:
    """Return `name` if it can name a job, else raise InvalidJobName saying why."""
    if not name:
        raise InvalidJobName('A job name is empty: give it one, as in "fuse-ckpt training run my-job -- …".')
    if len(name.encode(errors="surrogateescape")) > JOB_NAME_MAX:
        raise InvalidJobName(f"A job name is longer than {JOB_NAME_MAX} bytes ({name[:20]}…): choose a shorter one.")
    bad = next((c for c in name if c in "/:" or not c.isprintable()), None)
    if bad is not None or name[0] in "-." or name != name.strip():
        what = f"has {bad!r} in it" if bad else "begins with '-' or '.', or has space around it"
        raise InvalidJobName(f"Job name {name!r} {what}: use letters, digits, '-', '_', '.' and '='.")
    return name
