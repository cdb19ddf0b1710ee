"""Staging: from files that were closed to checkpoints that are committed."""

from fuse_ckpt.staging.area import Area
from fuse_ckpt.staging.committer import Committer, Drained
from fuse_ckpt.staging.copying import copy_bytes
from fuse_ckpt.staging.journal import load_all, why_stuck
from fuse_ckpt.staging.processes import UNSEEN, death_of, is_task_of, state_of, wait_exit
from fuse_ckpt.staging.recovery import recover
from fuse_ckpt.staging.settings import Settings
from fuse_ckpt.staging.validate import awaited, fault_of
from fuse_ckpt.staging.worktree import may_be_written

__all__ = [
    "UNSEEN",
    "Area",
    "Committer",
    "Drained",
    "Settings",
    "awaited",
    "copy_bytes",
    "death_of",
    "fault_of",
    "is_task_of",
    "load_all",
    "may_be_written",
    "recover",
    "state_of",
    "wait_exit",
    "why_stuck",
]
