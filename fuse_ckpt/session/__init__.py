"""The composition root: puts the rooms together into a mount, a training run, or an answer about this machine."""

from fuse_ckpt.session.committing import CommitAnswer, commit
from fuse_ckpt.session.elsewhere import Attached, Synced, attach, bring, detach, sync, sync_catalog
from fuse_ckpt.session.inputs import bring_apart, find_input
from fuse_ckpt.session.machine import Finding, probe
from fuse_ckpt.session.mounting import browse, mount, pending_units, statistics, umount, view
from fuse_ckpt.session.options import Finished, Mounted, MountOptions, PendingUnit
from fuse_ckpt.session.training import run_training

__all__ = [
    "Attached",
    "CommitAnswer",
    "Finding",
    "Finished",
    "MountOptions",
    "Mounted",
    "PendingUnit",
    "Synced",
    "attach",
    "bring",
    "bring_apart",
    "browse",
    "commit",
    "detach",
    "find_input",
    "mount",
    "pending_units",
    "probe",
    "run_training",
    "statistics",
    "sync",
    "sync_catalog",
    "umount",
    "view",
]
