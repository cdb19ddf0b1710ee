"""Mounting and unmounting without a training command, and what a daemon knows that the store does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuse_ckpt.errors import InvalidMountPoint, MountFailed, StillBound
from fuse_ckpt.fuse import mount as mounts
from fuse_ckpt.session import control, daemon
from fuse_ckpt.session.options import Mounted, MountOptions, PendingUnit
from fuse_ckpt.staging import load_all, why_stuck
from fuse_ckpt.store import Layout, Store


def mount(
    options: MountOptions, *, foreground: bool, ready: Callable[[Mounted], None] = lambda mounted: None
) -> Mounted:
    """Mount a job's output directory; returns when it is ready, or with `foreground` when it is unmounted again.

    `ready` is called in either case as soon as it can be used.
    Raises InvalidMountPoint, JobMounted, MountFailed, StoreUnusable.
    """
    if not foreground:
        with Store.open(options.store, create=options.job is not None) as store:
            mounted = daemon.start(store, options)
        ready(mounted)
        return mounted
    from fuse_ckpt.session.service import serve

    daemon.configure_logging(options.verbose)
    answers: list[Mounted] = []

    def heard(mounted: Mounted) -> None:
        answers.append(mounted)
        ready(mounted)

    serve(options, heard)
    return answers[0]


def browse(
    store: Path, mountpoint: Path, *, foreground: bool, ready: Callable[[Mounted], None] = lambda mounted: None
) -> Mounted:
    """Mount the whole store read-only, by job. Raises as `mount` does."""
    return mount(MountOptions(store, None, mountpoint), foreground=foreground, ready=ready)


def view(store: Store, mountpoint: Path) -> Mounted:
    """Mount the whole of an open store read-only, by job, until it is unmounted or, at the latest, this process ends.

    Raises as `mount` does.
    """
    return daemon.start(store, MountOptions(store.layout.root, None, mountpoint, supervisor=os.getpid()))


def umount(mountpoint: Path) -> None:
    """Commit what is pending, unmount, and return when the daemon has gone; a stale mount is only cleared.

    Raises InvalidMountPoint where nothing of ours is mounted, StillBound where it is in use or bound elsewhere.
    """
    place = mounts.mount_at(mountpoint)
    if place is None or place.fstype != mounts.FSTYPE:
        raise InvalidMountPoint(f"{mountpoint} is not a mount of fuse-ckpt: findmnt -t {mounts.FSTYPE} lists them.")
    source = Path(place.source)
    job = source.name if source.parent.name == "jobs" else None
    answer = control.ask(source / "control", "unmount", patience=None) if job is not None else None
    if answer is None:  # browse, or a daemon that has gone
        mounts.detach(mountpoint, lazy=job is not None)
        return
    if "busy" in answer:
        raise StillBound(answer["busy"])
    if "error" in answer:
        raise MountFailed(answer["error"])
    if not answer["unmounted"]:
        raise StillBound(
            f"{mountpoint} is unmounted, but still bound elsewhere, perhaps in a container or another mount namespace; "
            "its daemon serves that until it is unmounted too."
        )
    with Store.open(source.parent.parent) as store:
        if not store.wait_unlocked(job or "", daemon.END_PATIENCE):
            raise StillBound(f"{mountpoint} is unmounted, but its daemon has not ended yet; why: {source}/daemon.log")


def statistics(store: Store) -> list[dict[str, Any]]:
    """What each daemon of the store says of its mount: data path and why, what it committed, what is pending."""
    answers = []
    for job in store.jobs():
        if store.job_locked(job.name):
            answer = control.ask(store.layout.control(job.name), "status")
            answers.append({"job": job.name, **(answer or {"error": "its daemon does not answer"})})
    return answers


def pending_units(store: Store, job: str) -> list[PendingUnit]:
    """What is not committed yet: sealed drafts in the store, and what the job's daemon, if it runs, is waiting for.

    What is committed while this looks may be among it; nothing is left out.
    """
    layout: Layout = store.layout
    pending = layout.pending(job)
    before = {one.directory for one in load_all(pending, clean=False)} if pending.is_dir() else set()
    answer = control.ask(layout.control(job), "status") or {}  # first: a draft that is sealed now shows in the store
    drafts = [PendingUnit(draft["name"], draft["since_ns"], draft["size"]) for draft in answer.get("drafts", [])]
    sealed = load_all(pending, clean=False) if pending.is_dir() else []
    found = [
        PendingUnit(
            one.journal.unit.name,
            one.journal.created_ns,
            sum(linked.size for linked in one.journal.files if not linked.companion),
            why_stuck(one) or "",
        )
        for one in sealed
    ]
    meanwhile = {one.journal.unit.name: one.journal.created_ns for one in sealed if one.directory not in before}
    found += [draft for draft in drafts if draft.since_ns > meanwhile.get(draft.name, -1)]
    return sorted(found, key=lambda unit: unit.since_ns)
