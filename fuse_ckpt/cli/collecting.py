"""`fuse-ckpt checkpoint gc`: apply policies, empty the trash, give bytes back to the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from fuse_ckpt.cli import access, formats, listing, render
from fuse_ckpt.cli.rules import Bytes, Duration, checked_policy
from fuse_ckpt.cli.settings import Settings
from fuse_ckpt.errors import JobMounted, UnknownJob

if TYPE_CHECKING:
    from fuse_ckpt.model import Checkpoint
    from fuse_ckpt.store import Plan, Policy, Store

Document = dict[str, Any]

PATIENCE = 60.0  # seconds that gc waits, each time, for commits to end
_COLUMNS = {
    "ID": "id",
    "JOB": "job",
    "NAME": "name",
    "STEP": "step",
    "ACTION": "action",
    "REASON": "reason",
    "FREES": "freesBytes",
}


@click.command("gc", short_help="Empty the trash; apply policies.")
@click.option(
    "--policy",
    metavar="POLICY",
    callback=checked_policy,
    help="Move to the trash what it does not keep, e.g. keep-last=3,keep-every=1000,keep-best=2:eval_loss,"
    "keep-within=7d. Without it, jobs that have a policy of their own (--retain) are treated by that.",
)
@click.option("--job", metavar="JOB", help="Of this training job only.")
@click.option(
    "--trash-ttl",
    "ttl_ns",
    type=Duration(),
    metavar="D",
    help="Collect what was deleted so long ago: 12h, 0 for all. Without it, what the jobs say, else 7d.",
)
@click.option(
    "--min-free",
    type=Bytes(),
    default=0,
    metavar="BYTES",
    help="Go on with the trash, then without a policy with the oldest checkpoints, until so much is free: 20GB.",
)
@click.option("--work", is_flag=True, help="Remove from the working trees of jobs that ended what checkpoints hold.")
@click.option("--all-files", is_flag=True, help="With --work: files that are in no checkpoint (logs), too.")
@click.option("--dry-run", is_flag=True, help="Say of each checkpoint whether it stays, and why; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def gc(
    settings: Settings,
    policy: str | None,
    job: str | None,
    ttl_ns: int | None,
    min_free: int,
    work: bool,
    all_files: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move to the trash what policies do not keep, collect what has been there long enough, and free its bytes.

    Rules of a policy add up. keep-last, keep-every and keep-best count in each series of NAMEs that differ in their
    numbers alone: checkpoint-500 and checkpoint-1000 are one series, best.pt another. What is pinned, tagged or in use
    stays, and so does the newest checkpoint of a job that training can be resumed from.

    --work is for jobs that nobody has mounted. Checkpoints lose nothing by it, and deleted ones can still be restored;
    but a run that is continued finds its output directory without these files.
    """
    if all_files and not work:
        raise click.UsageError("--all-files says more about --work: give that too.")
    with access.existing_store(settings) as store:
        if store is None:
            if job is not None:
                raise UnknownJob(job)
            document: Document = {"dryRun": dry_run, "checkpoints": [], "freedBytes": 0}
        else:
            now_ns = time.time_ns()
            plan = store.plan(now_ns, job, _parsed(policy), ttl_ns, min_free)
            document = _foretold(store, plan, now_ns) if dry_run else _done(store, plan, min_free)
            if work:
                document["work"] = [_release(store, each, all_files, dry_run) for each in _ended(store, job)]
    if as_json:
        click.echo(render.to_json(document))
    else:
        _say(document, colour=settings.colour)


def _parsed(policy: str | None) -> Policy | None:
    from fuse_ckpt.store import parse_policy

    return None if policy is None else parse_policy(policy)


# what would happen, what happened


def _foretold(store: Store, plan: Plan, now_ns: int) -> Document:
    rows = [_row(each, keep, reason) for each, keep, reason in _fates(plan, now_ns)]
    going = [row["id"] for row in rows if row["action"] == "remove"]
    frees = store.frees(going)
    for row in rows:
        row["freesBytes"] = frees.get(row["id"])
    space = store.space(going)
    return {"dryRun": True, "checkpoints": rows, "freedBytes": space.free, "heldBytes": space.held}


def _fates(plan: Plan, now_ns: int) -> Iterator[tuple[Checkpoint, bool, str]]:
    """Each checkpoint that the plan looks at, whether it stays, and why."""
    expired, pressed = ({each.id for each in some} for some in (plan.expired, plan.pressed))
    for one in plan.decisions:
        yield one.checkpoint, one.keep, one.reason
    for each, expiry in plan.trash:
        if each.id in expired:
            yield each, False, "deleted, and its time has passed"
        elif each.id in pressed:
            yield each, False, "deleted, and the disk is nearly full"
        else:
            yield each, True, f"deleted, and can be restored for {formats.duration(expiry - now_ns)}"
    ruled = {one.checkpoint.id for one in plan.decisions}
    yield from (
        (each, False, "the disk is nearly full")
        for each in plan.pressed
        if each.deleted_ns is None and each.id not in ruled
    )


def _row(each: Checkpoint, keep: bool, reason: str) -> Document:
    place = {"id": each.id, "job": each.job, "name": each.name, "step": each.metadata.step}
    return place | {"action": "keep" if keep else "remove", "reason": reason}


def _done(store: Store, plan: Plan, min_free: int) -> Document:
    tidied = store.tidy(plan, f"Process {os.getpid()} (checkpoint gc)", PATIENCE)
    store.recover()  # what crashes left
    reasons = {each.id: reason for each, _, reason in _fates(plan, 0)}
    gone = {each.id: each for each in (*tidied.evicted, *tidied.removed, *tidied.collected)}
    rows = [_row(each, False, reasons.get(each.id, "")) for each in gone.values()]
    collected, evicted = ({each.id for each in some} for some in (tidied.collected, tidied.evicted))
    for row in rows:
        row["collected"] = row["id"] in collected
        row["evicted"] = row["id"] in evicted
    cleared = tidied.cleared
    disk = os.statvfs(store.layout.root)
    return {
        "dryRun": False,
        "checkpoints": rows,
        "leftAlone": tidied.kept,
        "freedBytes": cleared.free,
        "heldBytes": cleared.held,
        "waitingBytes": cleared.waiting,
        "lackingBytes": max(0, min_free - disk.f_bavail * disk.f_frsize),
    }


def _ended(store: Store, job: str | None) -> list[str]:
    """The jobs whose working trees are looked at."""
    return [each.name for each in store.jobs()] if job is None else [store.job(job).name]


def _release(store: Store, job: str, all_files: bool, dry_run: bool) -> Document:
    """Take the names of what checkpoints hold out of a working tree; those of a mounted job are left."""
    try:
        lock = store.lock_job(job)
    except JobMounted:
        return {"job": job, "mounted": True, "released": 0, "freedBytes": 0, "loose": []}
    with lock:
        files = store.work_files(job)
        going = [each for each in files if each.kept or all_files]
        if not dry_run:
            store.release_work(job, going)
    return {
        "job": job,
        "mounted": False,
        "released": len(going),
        "freedBytes": sum(each.disk for each in going),
        "loose": [{"path": each.path, "sizeBytes": each.size} for each in files if not each.kept],
        "looseReleased": all_files,
    }


# in words


def _say(document: Document, *, colour: bool) -> None:
    if document["dryRun"]:
        listing.show("What gc Would Do", _COLUMNS, document["checkpoints"], colour=colour)
        click.echo(f"{formats.size(document['freedBytes'])} would come free{_held(document)}.")
    else:
        _say_done(document)
    for tree in document.get("work", []):
        _say_released(tree, would=document["dryRun"])


def _say_done(document: Document) -> None:
    for row in document["checkpoints"]:
        what = "Collected" if row["collected"] else "Let go here of" if row["evicted"] else "Moved to the trash"
        place = f"{row['job']}/{row['name']}" if row["job"] else row["name"]
        click.echo(formats.visible(f"{what} {row['id']} ({place}): {row['reason']}"))
    for checkpoint, why in document.get("leftAlone", {}).items():
        click.echo(formats.visible(f"Left alone {checkpoint}: {why}"), err=True)
    click.echo(f"{formats.size(document['freedBytes'])} freed{_held(document)}.")
    if waiting := document.get("waitingBytes"):
        later = "wait until no checkpoint is being committed: run gc again, or mount a job"
        click.echo(f"{formats.size(waiting)} {later}.", err=True)
    if lacking := document.get("lackingBytes"):
        why = "what is left is pinned, tagged, in use, kept by a policy, or the newest of its job"
        click.echo(f"{formats.size(lacking)} are lacking still: {why}.", err=True)


def _say_released(tree: Document, *, would: bool) -> None:
    if tree["mounted"]:
        click.echo(f"Job {tree['job']} is mounted: its working tree stays as it is.", err=True)
        return
    removed = "would be removed" if would else "removed"
    freed = formats.size(tree["freedBytes"])
    click.echo(f"{tree['job']}: {tree['released']} files of its working tree {removed}, {freed} freed.")
    if tree["loose"]:
        kept = "kept (training fetch copies them, --all-files removes them)"
        click.echo(f"In no checkpoint, and {'removed with them' if tree['looseReleased'] else kept}:")
    for each in tree["loose"]:
        click.echo(f"  {formats.visible(each['path'])} ({formats.size(each['sizeBytes'])})")


def _held(document: Document) -> str:
    held = document.get("heldBytes")
    return f"; {formats.size(held)} stay in working trees (--work)" if held else ""
