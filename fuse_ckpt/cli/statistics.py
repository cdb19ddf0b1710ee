"""`fuse-ckpt stats`: what the store holds, and what its mounts are doing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from fuse_ckpt.cli import access, render
from fuse_ckpt.cli.settings import Settings

if TYPE_CHECKING:
    from fuse_ckpt.model import Connection, Job
    from fuse_ckpt.store import Store, Tally

Document = dict[str, Any]

_PREFIX = "fuse_ckpt_"
# Key of the document → Prometheus' name, type, help.
_STORE = {
    "blobs": ("blobs", "gauge", "Files that the store keeps, equal ones once."),
    "blobBytes": ("blob_bytes", "gauge", "Their bytes."),
    "sharedBytes": ("shared_bytes", "gauge", "Bytes that checkpoints would take more if they shared none."),
    "indexBytes": ("index_bytes", "gauge", "Size of the index."),
    "freeBytes": ("free_bytes", "gauge", "Bytes that are free on the store's disk."),
    "diskBytes": ("disk_bytes", "gauge", "Size of the store's disk."),
}
_JOB = {
    "logicalBytes": ("logical_bytes", "gauge", "Bytes of a job's checkpoints, a shared file's for each that holds it."),
    "trashBytes": ("trash_bytes", "gauge", "The same of those that are deleted and not collected yet."),
    "mounted": ("mounted", "gauge", "Whether the job is mounted."),
}
_COPIES = {
    "waiting": ("copies_waiting", "gauge", "Checkpoints that wait to be copied to an object store."),
    "waitingBytes": ("copies_waiting_bytes", "gauge", "Bytes of them that are still to be sent."),
    "partial": ("copies_partial", "gauge", "Checkpoints of which other nodes' parts are missing there."),
    "oldestSeconds": ("copies_oldest_seconds", "gauge", "How long the first of them has waited."),
}
_MOUNT = {
    "committed": ("committed_total", "counter", "Checkpoints that the mount has committed."),
    "failed": ("failed_total", "counter", "Of these, those that were not whole."),
    "stuck": ("stuck", "gauge", "Drafts that could not be committed, and wait."),
    "bytes": ("committed_bytes_total", "counter", "Bytes of what the mount has committed."),
    "removed": ("removed_total", "counter", "Checkpoints that the mount has moved to the trash by policy."),
    "evicted": (
        "evicted_total",
        "counter",
        "Checkpoints whose bytes the mount has let go of: an object store has them.",
    ),
    "collected": ("collected_total", "counter", "Checkpoints that the mount has collected."),
    "freed": ("freed_bytes_total", "counter", "Bytes that came free by that."),
}
_STATES = ("available", "failed", "deleted", "pending")


@click.command("stats", short_help="What the store holds, and what its mounts do.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of YAML.")
@click.option("--prometheus", is_flag=True, help="Print Prometheus' text format instead.")
@click.pass_obj
def stats(settings: Settings, as_json: bool, prometheus: bool) -> None:
    """Tell what the store holds, by jobs, and of each job that is mounted: who moves its data and why, what was
    committed, what is pending, what policies removed."""
    if as_json and prometheus:
        raise click.UsageError("--json and --prometheus are two forms of the same: choose one.")
    with access.existing_store(settings) as store:
        if store is None:
            document: Document = {"store": {"path": str(settings.store)}, "jobs": [], "mounts": []}
        else:
            document = _document(store)
    if prometheus:
        click.echo("\n".join(_exposition(document)))
    else:
        click.echo(render.to_json(document) if as_json else render.to_yaml(document))


def _document(store: Store) -> Document:
    tallies = store.tallies()
    jobs = [_of_job(store, job, tallies.pop(job.name, None)) for job in store.jobs()]
    jobs += [_of_strangers(job, tally) for job, tally in tallies.items()]
    document = {"store": _of_store(store, jobs), "jobs": jobs, "mounts": _mounts(store, jobs)}
    copies = [_of_copies(store, each) for each in store.connections() if each.attached is not None]
    return document | ({"storage": copies} if copies else {})


def _of_copies(store: Store, known: Connection) -> Document:
    """What is on its way to an object store."""
    outbox = store.outbox(known.name)
    waiting = [each for each in outbox.values() if each.is_unsent]
    oldest = min((store.checkpoint(each).committed_ns for each in store.waiting(known.name)), default=None)
    return {
        "name": known.name,
        "path": known.attached,
        "waiting": len(waiting),
        "waitingBytes": sum(max(0, each.size - each.sent) for each in waiting),
        "partial": sum(each.stage == "partial" for each in outbox.values()),
        "oldestSeconds": 0 if oldest is None else max(0, time.time_ns() - oldest) // 10**9,
        "problem": next((each.reason for each in waiting if each.reason), None),
    }


def _of_store(store: Store, jobs: list[Document]) -> Document:
    totals = store.totals()
    disk = os.statvfs(store.layout.root)
    logical, trash = (sum(job[key] for job in jobs) for key in ("logicalBytes", "trashBytes"))
    return {
        "path": str(store.layout.root),
        **{state: sum(job[state] for job in jobs) for state in _STATES},
        "logicalBytes": logical,
        "trashBytes": trash,
        "blobs": totals.blobs,
        "blobBytes": totals.bytes,
        "sharedBytes": max(0, logical + trash - totals.bytes),
        "indexBytes": sum(entry.stat().st_size for entry in os.scandir(store.layout.index)),
        "freeBytes": disk.f_bavail * disk.f_frsize,
        "diskBytes": disk.f_blocks * disk.f_frsize,
    }


def _of_job(store: Store, job: Job, tally: Tally | None) -> Document:
    return {
        "name": job.name,
        **_counted(tally, len(access.pending(store, job.name))),
        "mounted": store.job_locked(job.name),
        "retain": job.retain,
        "trashTtlSeconds": None if job.trash_ttl_ns is None else job.trash_ttl_ns // 10**9,
        "minFreeBytes": job.min_free,
        "replicate": None if job.replication is None else job.replication.storage,
    }


def _of_strangers(job: str, tally: Tally) -> Document:
    """Checkpoints that were pushed ("", no job), or of a job that was deleted."""
    return {"name": job, **_counted(tally, 0), "mounted": False}


def _counted(tally: Tally | None, pending: int) -> Document:
    counts = {"available": 0, "failed": 0, "deleted": 0, "pending": pending, "logicalBytes": 0, "trashBytes": 0}
    if tally is not None:
        counts |= {"available": tally.available, "failed": tally.failed, "deleted": tally.deleted}
        counts |= {"logicalBytes": tally.bytes, "trashBytes": tally.trash_bytes}
    return counts


def _mounts(store: Store, jobs: list[Document]) -> list[Document]:
    if not any(job["mounted"] for job in jobs):
        return []  # asking would import the whole session, 200 ms
    from fuse_ckpt import session

    return session.statistics(store)


# Prometheus


def _exposition(document: Document) -> Iterator[str]:
    store, jobs, mounts = document["store"], document["jobs"], document["mounts"]
    for key, (name, kind, text) in _STORE.items():
        if key in store:
            yield from _family(name, kind, text, [({}, store[key])])
    counts = [({"job": job["name"], "state": state}, job[state]) for job in jobs for state in _STATES]
    yield from _family("checkpoints", "gauge", "Checkpoints by job and state.", counts)
    for key, (name, kind, text) in _JOB.items():
        yield from _family(name, kind, text, [({"job": job["name"]}, int(job[key])) for job in jobs])
    for key, (name, kind, text) in _COPIES.items():
        copies = [({"storage": each["name"]}, each[key]) for each in document.get("storage", ())]
        yield from _family(name, kind, text, copies)
    paths = [({"job": each["job"], "data_path": each["data_path"]}, 1) for each in mounts if "data_path" in each]
    yield from _family("data_path", "gauge", "Who moves the data of a mount.", paths)
    for key, (name, kind, text) in _MOUNT.items():
        said = [({"job": each["job"]}, each.get("statistics", {}) | each.get("kept", {})) for each in mounts]
        yield from _family(name, kind, text, [(labels, found[key]) for labels, found in said if key in found])


def _family(name: str, kind: str, text: str, samples: list[tuple[dict[str, str], int]]) -> Iterator[str]:
    if not samples:
        return
    yield f"# HELP {_PREFIX}{name} {text}"
    yield f"# TYPE {_PREFIX}{name} {kind}"
    yield from (f"{_PREFIX}{name}{_labels(labels)} {value}" for labels, value in samples)


def _labels(labels: Mapping[str, str]) -> str:
    quoted = (f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return "{" + ",".join(quoted) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
