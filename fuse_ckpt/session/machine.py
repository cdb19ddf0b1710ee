"""What this machine lacks for mounting, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.errors import FuseCkptError
from fuse_ckpt.fuse import mount, passthrough
from fuse_ckpt.store import Store

_VOLATILE = {
    "tmpfs": "memory: its checkpoints are gone at the next start",
    "ramfs": "memory: its checkpoints are gone at the next start",
}
_CONTAINERS = {
    "overlay": "a container's own layer: its checkpoints go with the container",
    "aufs": "a container's own layer",
}


class Finding(Struct, frozen=True):
    """One thing that was looked at. `ok` None: it works, but should be thought about."""

    ok: bool | None
    what: str
    remedy: str | None = None


def probe(store: Path) -> list[Finding]:
    """Look at the kernel, the privileges, the library and the store's place. Changes nothing."""
    return [_kernel(), _device(), _privilege(), _data_path(store), _library(), _open(store), _disk(store)]


def _kernel() -> Finding:
    return Finding(True, f"Linux {platform.release()}, Python {platform.python_version()}")


def _device() -> Finding:
    if os.path.exists(mount.DEVICE):
        return Finding(True, f"{mount.DEVICE} is there")
    return Finding(
        False, f"{mount.DEVICE} is missing", f"modprobe fuse, or start the container with --device {mount.DEVICE}"
    )


def _privilege() -> Finding:
    if mount.may_mount():
        return Finding(True, "may mount by itself (CAP_SYS_ADMIN)")
    if shutil.which("fusermount3"):
        return Finding(True, "mounts through fusermount3; an input directory cannot be bound elsewhere")
    return Finding(
        False,
        "may not mount: no CAP_SYS_ADMIN, no fusermount3",
        "apt install fuse3, or run as root (container: --cap-add SYS_ADMIN)",
    )


def _data_path(store: Path) -> Finding:
    verdict = passthrough.probe(_existing(store))
    if verdict.depth:
        return Finding(True, "passthrough: the kernel moves the data, at the speed of the disk")
    remedy = "Linux 6.9 or newer, and CAP_SYS_ADMIN in the initial user namespace, make saving as fast as the disk"
    return Finding(None, f"no passthrough, the data goes through the daemon: {verdict.reason}", remedy)


def _library() -> Finding:
    if importlib.util.find_spec("pyfuse3") is not None:
        return Finding(True, "pyfuse3 is installed")
    needs = "apt install libfuse3-dev pkg-config gcc python3-dev, then pip install 'fuse-ckpt[mount]'"
    return Finding(False, "pyfuse3 is not installed: this machine can list, inspect and fetch, but not mount", needs)


def _open(store: Path) -> Finding:
    if not store.exists() or (store.is_dir() and not os.listdir(store)):
        return Finding(True, f"there is no store at {store} yet: the first run makes it")
    try:
        with Store.open(store, create=False) as opened:
            return Finding(True, f"the store at {store} opens: {len(opened.jobs())} jobs")
    except FuseCkptError as exc:
        return Finding(False, str(exc))


def _disk(store: Path) -> Finding:
    place = _mount_of(store)
    free = shutil.disk_usage(_existing(store)).free / 2**30
    warning = _VOLATILE.get(place.fstype) or _CONTAINERS.get(place.fstype)
    if warning is None:
        return Finding(True, f"the store lies on {place.fstype}, {free:.1f} GiB free")
    return Finding(
        None,
        f"the store lies on {place.fstype}, {warning}",
        "name a place on a disk or a volume: --store DIR or FUSE_CKPT_STORE",
    )


def _mount_of(path: Path) -> mount.Place:
    """The mount that a path, which need not exist yet, lies on."""
    real = str(_existing(path).resolve())
    holders = [place for place in mount.mounts() if _holds(place.mountpoint, real)]
    longest = max(len(place.mountpoint) for place in holders)
    return [place for place in holders if len(place.mountpoint) == longest][-1]


def _holds(mountpoint: str, path: str) -> bool:
    return path == mountpoint or path.startswith(mountpoint.rstrip("/") + "/")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
