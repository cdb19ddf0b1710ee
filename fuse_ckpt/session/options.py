"""What a session is asked for, and what it answers. Encoded as JSON on the way to the daemon."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fuse_ckpt.model import Replication, Run

NOWHERE = "none"  # what takes a job's replication back


class MountOptions(Struct, frozen=True, omit_defaults=True):
    """How a job is mounted. `job` None: the whole store, read-only, by job.

    `mountpoint` None: the job's own place in the store. `parent`: the checkpoint that is its input, leased while it is
    mounted. `supervisor`: a process whose death ends the mount, as soon as nobody uses it any more. `retain`,
    `trash_ttl_ns`, `min_free` and `replicate` are recorded with the job, see `model.Job`; None leaves what is recorded,
    `NO_POLICY`, 0 and `NOWHERE` take it back.
    """

    store: Path
    job: str | None
    mountpoint: Path | None = None
    node: str = "0"
    parent: str | None = None
    run: str | None = None
    show_checkpoints: bool = False
    allow_other: bool = False
    units: tuple[str, ...] = ()
    quiet_period: float | None = None
    verbose: bool = False
    data_path: str = "auto"  # or "passthrough", "daemon"
    durability: str = "commit"  # or "close": a close waits for the disk
    supervisor: int | None = None
    retain: str | None = None
    trash_ttl_ns: int | None = None
    min_free: int | None = None
    replicate: str | None = None  # the connection that its checkpoints are copied to
    replicate_rate: int | None = None  # bytes a second
    rank: int = 0
    nodes: int = 1
    attempt: str = ""

    def replication(self, recorded: Replication | None) -> Replication | None:
        """Where the job's checkpoints are copied to, and as which node's; `recorded`: what held until now."""
        storage = self.replicate or (recorded.storage if recorded is not None else NOWHERE)
        if storage == NOWHERE:
            return None
        return Replication(storage, self.rank, self.nodes, self.attempt)


class Mounted(Struct, frozen=True):
    """A mount that is ready. `data_path`: who moves the bytes, `reason`: why so."""

    mountpoint: Path
    pid: int
    data_path: str
    reason: str


class Finished(Struct, frozen=True):
    """A run that has ended. `drained`: nothing is left to commit; `problems`: what went wrong beside the command."""

    exit_code: int
    run: Run
    mountpoint: Path
    drained: bool
    problems: tuple[str, ...] = ()


class PendingUnit(Struct, frozen=True):
    """A draft that is not committed yet."""

    name: str
    since_ns: int
    size: int
    reason: str = ""  # why it could not be committed, if it could not
