"""What `inspect` says of a checkpoint and of a job, as documents of dicts and lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fuse_ckpt.cli import formats

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint, Entry, Job, Manifest, Provenance, Replica, Run
    from fuse_ckpt.store import Tally

Document = dict[str, object]


def of_checkpoint(manifest: Manifest, scan: Document | None = None, replica: Replica | None = None) -> Document:
    """Everything that the store knows of a checkpoint. `scan`: what a scan of its files has found, if it is known;
    `replica`: how its copy in an object store is, if it is to have one."""
    checkpoint = manifest.checkpoint
    more: Document = {} if scan is None else {"scan": scan}
    if replica is not None:
        copy = {"storage": replica.storage, "state": replica.words, "group": replica.group, "problem": replica.reason}
        more["replica"] = {**copy, "here": checkpoint.remote is None}
    return {
        "kind": "checkpoint",
        "metadata": {"name": checkpoint.name, "id": checkpoint.id},
        "spec": _origin(checkpoint),
        "status": _status(manifest) | more,
    }


def _origin(checkpoint: Checkpoint) -> Document:
    """Where a pushed checkpoint came from; one of a training job came from the job."""
    origin = checkpoint.origin
    return {
        "fromLocalFiles": [] if origin is None else list(origin.local),
        "storageProvider": None if origin is None else origin.provider,
        "sourcePath": None if origin is None else origin.path,
    }


def _status(manifest: Manifest) -> Document:
    checkpoint = manifest.checkpoint
    status: Document = {
        "status": str(checkpoint.state),
        "job": checkpoint.job,
        "version": checkpoint.ordinal,
        "createdAt": formats.timestamp(checkpoint.created_ns),
        "committedAt": formats.timestamp(checkpoint.committed_ns),
        "parentID": checkpoint.parent,
        "runID": checkpoint.run,
        "resumable": checkpoint.metadata.resumable,
        "tags": list(checkpoint.tags),
        "pinned": checkpoint.pinned,
        "epoch": checkpoint.metadata.epoch,
        "format": checkpoint.metadata.format,
        "tensors": checkpoint.metadata.tensors,
    }
    if checkpoint.failure is not None:
        status["failure"] = checkpoint.failure
    if checkpoint.promoted:
        status["promoted"] = True
    if checkpoint.revision > 1:
        status["revision"] = checkpoint.revision
    if checkpoint.metadata.notes:
        status["notes"] = list(checkpoint.metadata.notes)
    status |= {"size": formats.size(checkpoint.size), "sizeBytes": checkpoint.size}
    status["files"] = [_file(entry) for entry in manifest.entries if entry.kind == "file"]
    if links := [{"path": e.path, "target": e.target} for e in manifest.entries if e.kind == "symlink"]:
        status["links"] = links
    status["metadata"] = _said(checkpoint)
    return status


def _file(entry: Entry) -> Document:
    return {"path": entry.path, "size": formats.size(entry.size), "sizeBytes": entry.size, "digest": entry.digest}


def _said(checkpoint: Checkpoint) -> Document:
    said = checkpoint.metadata
    return {
        "name": checkpoint.name,
        "node": checkpoint.node,
        "step": said.step,
        "trainLoss": formats.finite(said.train_loss),
        "evalLoss": formats.finite(said.eval_loss),
        "model": said.model,
        "version": said.version,
        "inferenceReady": said.inference_ready,
    }


def of_job(job: Job, runs: Sequence[Run], tally: Tally, pending: int, locked: bool) -> Document:
    """A job: its newest run, its checkpoints in numbers, and all its runs, oldest first. Sizes count a file's bytes
    for every checkpoint that holds it."""
    latest = runs[-1] if runs else None
    return {
        "kind": "training",
        "metadata": {"name": job.name, "createdAt": formats.timestamp(job.created_ns)},
        "runtime": of_run(latest, locked) if latest else {"status": None},
        "checkpoints": {
            "available": tally.available,
            "failed": tally.failed,
            "pending": pending,
            "size": formats.size(tally.bytes),
            "sizeBytes": tally.bytes,
        },
        "runs": [{"id": run.id, **of_run(run, locked and run is latest)} for run in runs],
    }


def of_run(run: Run, locked: bool) -> Document:
    document: Document = {
        "status": run_status(run, locked),
        "startedAt": formats.timestamp(run.started_ns),
        "endedAt": None if run.ended_ns is None else formats.timestamp(run.ended_ns),
        "command": list(run.command),
        "exitCode": run.exit_code,
        "node": run.node,
        "parentID": run.parent,
    }
    if run.provenance is not None:
        document["provenance"] = of_provenance(run.provenance)
    return document


def of_provenance(known: Provenance) -> Document:
    """Where a run was started, by whom, from which sources."""
    return {
        "host": known.host,
        "user": known.user,
        "directory": known.directory,
        "revision": known.revision,
        "dirty": known.dirty,
        "versions": dict(known.versions),
    }


def run_status(run: Run, locked: bool) -> str:
    """A run whose record was never ended, of a job that nobody serves, was cut short."""
    return "interrupted" if run.status == "in progress" and not locked else str(run.status)
