"""What `inspect` says of a checkpoint and of a job, as documents of dicts and lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fuse_ckpt.cli import formats

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint, Entry, Job, Manifest, Run

Document = dict[str, object]


def of_checkpoint(manifest: Manifest) -> Document:
    """Everything that the store knows of a checkpoint."""
    checkpoint = manifest.checkpoint
    return {
        "kind": "checkpoint",
        "metadata": {"name": checkpoint.name, "id": checkpoint.id},
        # All three are for checkpoints that came from elsewhere; those of a training job came from the job.
        "spec": {"fromLocalFiles": [], "storageProvider": None, "sourcePath": None},
        "status": _status(manifest),
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


def of_job(job: Job, runs: Sequence[Run], checkpoints: Sequence[Checkpoint], pending: int, locked: bool) -> Document:
    """A job: its newest run, its checkpoints in numbers, and all its runs, oldest first. Sizes count a file's bytes
    for every checkpoint that holds it."""
    latest = runs[-1] if runs else None
    held = sum(checkpoint.size for checkpoint in checkpoints)
    return {
        "kind": "training",
        "metadata": {"name": job.name, "createdAt": formats.timestamp(job.created_ns)},
        "runtime": _run(latest, locked) if latest else {"status": None},
        "checkpoints": {
            "available": sum(checkpoint.state == "available" for checkpoint in checkpoints),
            "failed": sum(checkpoint.state == "failed" for checkpoint in checkpoints),
            "pending": pending,
            "size": formats.size(held),
            "sizeBytes": held,
        },
        "runs": [{"id": run.id, **_run(run, locked and run is latest)} for run in runs],
    }


def _run(run: Run, locked: bool) -> Document:
    return {
        "status": run_status(run, locked),
        "startedAt": formats.timestamp(run.started_ns),
        "endedAt": None if run.ended_ns is None else formats.timestamp(run.ended_ns),
        "command": list(run.command),
        "exitCode": run.exit_code,
        "node": run.node,
        "parentID": run.parent,
    }


def run_status(run: Run, locked: bool) -> str:
    """A run whose record was never ended, of a job that nobody serves, was cut short."""
    return "interrupted" if run.status == "in progress" and not locked else str(run.status)
