"""Names of groups and of objects. Pure: every node computes the same ones, with no message."""

from __future__ import annotations

import re

from blake3 import blake3

from fuse_ckpt.errors import Corrupt

FORMAT = "fuse-ckpt.json"
_GROUP = re.compile(r"\d{12,18}-[0-9a-f]{16}", re.ASCII)
_DATA = re.compile(r"d/(\d{12,18}-[0-9a-f]{16})/(\d{5})/([0-9a-f]{64})", re.ASCII)
_PART = re.compile(r"(\d{12,18}-[0-9a-f]{16})/(\d{5})\.json", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)


def group_of(job: str, attempt: str, name: str, generation: int) -> str:
    """The group of the `generation`-th checkpoint (from 1) that this attempt of the job saves under NAME.

    The last number in the NAME, or else the generation, comes first, so that a listing is in the order of training.
    """
    raise NotImplementedError


def check_group(group: str) -> str:
    """`group`, if it is one. Errors: Corrupt."""
    raise NotImplementedError


def data_key(group: str, rank: int, digest: str) -> str:
    """The key, below the job's prefix, of the bytes with that digest that this rank sends for the group."""
    raise NotImplementedError
