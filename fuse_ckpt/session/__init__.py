"""The composition root: puts the rooms together into a mount, a training run, or an answer about this machine."""

from fuse_ckpt.session.machine import Finding, probe
from fuse_ckpt.session.mounting import browse, mount, pending_units, statistics, umount, view
from fuse_ckpt.session.options import Finished, Mounted, MountOptions, PendingUnit
from fuse_ckpt.session.training import run_training

__all__ = [
    "Finding",
    "Finished",
    "MountOptions",
    "Mounted",
    "PendingUnit",
    "browse",
    "mount",
    "pending_units",
    "probe",
    "run_training",
    "statistics",
    "umount",
    "view",
]
