"""Is a manifest one that this program can have made? Pure. Asked of what comes from a file, which anybody may have
written: a store that was copied here, a manifest that was edited by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from fuse_ckpt.errors import InvalidJobName
from fuse_ckpt.model import Entry, Kind, Manifest, check_job_name

DIGEST = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_PERMISSIONS = 0o7777


def fault_of(manifest: Manifest) -> str | None:
    """Why the manifest cannot be taken as it is, in a few words; None: it can."""
    head = manifest.checkpoint
    if _ID.fullmatch(head.id) is None:
        return f"{head.id!r} is no id"
    if not 0 < head.ordinal < 1 << 32:
        return f"{head.ordinal} is no version's number"
    try:
        if head.job:
            check_job_name(head.job)
    except InvalidJobName as error:
        return str(error)
    return next(_faults(manifest), None)


def is_inside(path: str) -> bool:
    """Whether a path names something below a directory, and not the directory or anything outside it."""
    return "\0" not in path and not any(part in ("", ".", "..") for part in path.split("/"))


def _faults(manifest: Manifest) -> Iterator[str]:
    for entry in (*manifest.entries, *manifest.companions):
        if not is_inside(entry.path):
            yield f"{entry.path!r} is no path inside a directory"
        elif not _is_consistent(entry):
            yield f"{entry.path!r} is not described as a {entry.kind.value} is"
    paths = [entry.path for entry in manifest.entries]
    if len(set(paths)) < len(paths):
        yield "a path is named twice"


def _is_consistent(entry: Entry) -> bool:
    if entry.size < 0 or entry.mode & ~_PERMISSIONS:
        return False
    if entry.kind is Kind.FILE:
        return DIGEST.fullmatch(entry.digest) is not None and not entry.target
    return not entry.digest and (entry.kind is Kind.SYMLINK) == bool(entry.target)
