"""Names of groups and of objects. Pure: every node computes the same ones, with no message."""

from __future__ import annotations

import re
from urllib.parse import unquote

from blake3 import blake3

from fuse_ckpt.errors import Corrupt, InvalidJobName
from fuse_ckpt.model import check_job_name

FORMAT = "fuse-ckpt.json"
CATALOG = "catalog"  # a table about all this, which nothing here reads
CLOCK = "clock"  # an object that is put anew to learn the object store's own time
GROUP = r"\d{12,18}-[0-9a-f]{16}"
DATA = rf"d/({GROUP})/(\d{{5}})/([0-9a-f]{{64}})"

_GROUP = re.compile(GROUP, re.ASCII)
_DATA = re.compile(DATA, re.ASCII)
_DOCUMENT = re.compile(rf"({GROUP})\.json", re.ASCII)
_PART = re.compile(r"(\d{5})\.json", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)
# What some object store or client refuses, changes, or takes for something else.
_ESCAPED = re.compile(r"[%\\#?*<>|\"^`{}~\[\]]")


def group_of(job: str, attempt: str, name: str, generation: int) -> str:
    """The group of the `generation`-th checkpoint (from 1) that this attempt of the job saves under NAME.

    The last number in the NAME, or else the generation, comes first, so that a listing is in the order of training.
    """
    found = _NUMBER.findall(name)
    number = int(found[-1]) if found and len(found[-1]) <= 18 else generation
    hasher = blake3()
    for value in (job, attempt, name, str(generation)):
        data = value.encode(errors="surrogateescape")
        hasher.update(len(data).to_bytes(8, "big") + data)
    return f"{number:012d}-{hasher.hexdigest(length=8)}"


def check_group(group: str) -> str:
    """`group`, if it is one. Errors: Corrupt."""
    if not _GROUP.fullmatch(group):
        raise Corrupt(f"{group!r} names no group of a shared store.")
    return group


def data_key(group: str, rank: int, digest: str) -> str:
    """The key, below the job's prefix, of the bytes with that digest that this rank sends for the group."""
    return f"{data_prefix(group, rank)}/{digest}"


def data_prefix(group: str, rank: int) -> str:
    """Below which, under the job's prefix, a rank's data of a group lies."""
    return f"d/{group}/{rank:05d}"


def part_key(group: str, rank: int) -> str:
    return f"p/{group}/{rank:05d}.json"


def decision_key(group: str) -> str:
    return f"c/{group}.json"


def tombstone_key(group: str) -> str:
    return f"x/{group}.json"


def source_of(key: str) -> tuple[str, int, str]:
    """The group, the rank and the digest that a data key names. Errors: Corrupt."""
    match = _DATA.fullmatch(key)
    if match is None:
        raise Corrupt(f"{key!r} names no data of a shared store.")
    return match[1], int(match[2]), match[3]


def document_group(name: str) -> str | None:
    """The group whose decision or tombstone an object of that name is; None for a stranger."""
    match = _DOCUMENT.fullmatch(name)
    return match[1] if match else None


def part_rank(name: str) -> int | None:
    """The rank whose part an object of that name is; None for a stranger."""
    match = _PART.fullmatch(name)
    return int(match[1]) if match else None


def is_group(name: str) -> bool:
    return _GROUP.fullmatch(name) is not None


def job_prefix(job: str) -> str:
    """Below which everything of a job lies. Errors: InvalidJobName."""
    return "j/" + _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", check_job_name(job))


def job_of(directory: str) -> str | None:
    """The job whose prefix is `j/<directory>`; None for a stranger."""
    job = unquote(directory)
    try:
        return job if job_prefix(job) == f"j/{directory}" else None
    except InvalidJobName:
        return None
