"""Where everything of a store lies. Paths alone: nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import check_job_name

from .validation import DIGEST


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of the store at `root`."""

    root: Path

    @property
    def format(self) -> Path:
        """One line: the version of the store."""
        return self.root / "format"

    @property
    def index(self) -> Path:
        return self.root / "index"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def tmp(self) -> Path:
        """Half-made things. Make them under `Store.committing()`: recover empties this when nobody commits."""
        return self.root / "tmp"

    @property
    def reserve(self) -> Path:
        """A file that is given up so that something can be deleted on a full disk."""
        return self.root / "reserve"

    @property
    def incoming(self) -> Path:
        """What is being pushed, a directory each, under a lock of its own; recover leaves it alone."""
        return self.root / "incoming"

    @property
    def mounts(self) -> Path:
        return self.root / "mounts"

    @property
    def directories(self) -> tuple[Path, ...]:
        """The directories that every store has."""
        return (self.index, self.blobs, self.manifests, self.jobs, self.locks, self.tmp, self.incoming, self.mounts)

    def blob(self, digest: str) -> Path:
        """The file of a digest (64 hex characters); CorruptRecord for what is none, and might lead anywhere."""
        if DIGEST.fullmatch(digest) is None:
            raise CorruptRecord(f"A manifest names the digest {digest!r}, which is none.")
        return self.blobs / digest[:2] / digest

    def manifest(self, checkpoint: str) -> Path:
        return self.manifests / f"{checkpoint}.json"

    def job(self, job: str) -> Path:
        """The directory of a job; InvalidJobName for a name that cannot be a directory's."""
        return self.jobs / check_job_name(job)

    def work(self, job: str) -> Path:
        """The working tree: what training sees as its output directory."""
        return self.job(job) / "work"

    def pending(self, job: str) -> Path:
        """Sealed drafts that are not committed yet, a directory each."""
        return self.job(job) / "pending"

    def control(self, job: str) -> Path:
        """The socket of the job's daemon. A socket's address holds 107 bytes: a deep store needs a way round."""
        return self.job(job) / "control"

    def lock(self, name: str) -> Path:
        return self.locks / name

    def output_mount(self, job: str) -> Path:
        """Where a job is mounted unless something else is asked for."""
        return self.mounts / check_job_name(job) / "output-checkpoint"

    def input_mount(self, job: str) -> Path:
        """Where a job's input is bound unless something else is asked for."""
        return self.mounts / check_job_name(job) / "input-checkpoint"
