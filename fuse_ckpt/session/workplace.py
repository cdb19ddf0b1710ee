"""A job's working tree, taken into hand: what a mount and `checkpoint commit` without one have in common."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from msgspec import Struct

from fuse_ckpt.faults import fault
from fuse_ckpt.staging import Area, Committer, Settings, recover
from fuse_ckpt.store import Store


class Workplace(Struct, frozen=True):
    """The working tree's descriptor, which drafts there are, and who commits them."""

    root_fd: int
    area: Area
    committer: Committer


def take_up(store: Store, job: str, settings: Settings, stack: ExitStack) -> Workplace:
    """What an earlier owner of the job's working tree left is found, and due. The job's lock is the caller's."""
    store.ensure_job(job, time.time_ns())
    fault("mount:recover")
    store.recover()
    fault("mount:adopt")
    for left_over in store.layout.job(job).glob("break-*"):
        left_over.unlink()
    root_fd = os.open(store.layout.work(job), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, root_fd)
    pending = store.layout.pending(job)
    area = Area(root_fd, pending, settings)
    committer = Committer(area, store, job)
    recover(area, store, job, pending)
    return Workplace(root_fd, area, committer)
