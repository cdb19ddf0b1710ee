"""Mounting and unmounting: by ourselves where we may (mount(2)), else through fusermount3, which is set-user-id root.

Either way the descriptor that speaks for the mount is ours, and libfuse is given one as `/dev/fd/N`: it then neither
opens nor mounts anything. That is the seam where the relay stands between the kernel and libfuse.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.errors import InvalidMountPoint, MountFailed, StillBound

FSTYPE = "fuse.fuse_ckpt"
DEVICE = "/dev/fuse"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_CAP_DAC_OVERRIDE, _CAP_SYS_ADMIN = 1, 21
_libc = ctypes.CDLL(None, use_errno=True)


class Place(Struct, frozen=True):
    """A line of /proc/self/mountinfo. `source` is the job's directory in its store for a mount of ours."""

    mountpoint: str
    fstype: str
    source: str


def mounts() -> list[Place]:
    """Every mount of this mount namespace, in mount order: of two at one place, the later is on top."""
    return list(_mountinfo())


def mount_at(mountpoint: Path) -> Place | None:
    """The topmost mount at exactly this place, however stale; None if nothing is mounted there."""
    wanted = str(_resolved(mountpoint))
    return next((place for place in reversed(mounts()) if place.mountpoint == wanted), None)


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, by its effective capabilities."""
    return _has_capability(_CAP_SYS_ADMIN)


def check_device() -> None:
    """Raise MountFailed, with the way out, where this machine cannot mount at all."""
    if not os.path.exists(DEVICE):
        raise MountFailed(f"There is no {DEVICE} here: modprobe fuse, or start the container with --device {DEVICE}.")
    if may_mount():
        return
    if shutil.which("fusermount3") is None:
        raise MountFailed(
            "Mounting needs CAP_SYS_ADMIN or fusermount3: apt install fuse3, or run as root (container: "
            "--cap-add SYS_ADMIN)."
        )
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise MountFailed(f"{DEVICE} cannot be opened by this user: give it mode 0666, or run as root.")


def check_mountpoint(mountpoint: Path) -> None:
    """Make the mount point ready: clear a stale mount of ours. InvalidMountPoint says what is wrong with it."""
    place = mount_at(mountpoint)
    if place is not None and place.fstype == FSTYPE and _is_stale(mountpoint):
        detach(mountpoint, lazy=True)
        place = mount_at(mountpoint)
    if place is not None and place.fstype == FSTYPE:
        raise InvalidMountPoint(
            f"{mountpoint} is already mounted, from {place.source}: fuse-ckpt umount it, or choose another directory."
        )
    try:
        if os.listdir(mountpoint):
            raise InvalidMountPoint(
                f"{mountpoint} is not empty: choose an empty directory, so that nothing is hidden by the mount."
            )
    except FileNotFoundError:
        raise InvalidMountPoint(f"{mountpoint} does not exist: mkdir -p it first.") from None
    except NotADirectoryError:
        raise InvalidMountPoint(f"{mountpoint} is not a directory.") from None
    except OSError as exc:
        raise InvalidMountPoint(f"{mountpoint} cannot be used: {exc.strerror}.") from None


class Attached(Struct, frozen=True):
    """A mount that is to be served. `device`: the descriptor that speaks for it; non-blocking where it is `relayed`,
    for then it is ours to read, else libfuse's. `depth`: of backing files that the kernel takes; 0: it takes none."""

    mountpoint: Path
    device: int
    depth: int = 0
    relayed: bool = True


def attach(
    mountpoint: Path, source: Path, *, allow_other: bool, read_only: bool, depth: int, relayed: bool = True
) -> Attached:
    """Mount by ourselves, or through fusermount3. `source` is what /proc/mounts shows. Raises MountFailed."""
    mountpoint = _resolved(mountpoint)
    if may_mount():
        device = mount_device(mountpoint, source, allow_other=allow_other, read_only=read_only, polled=relayed)
    else:
        device = _fusermount(mountpoint, source, allow_other=allow_other, read_only=read_only)
        os.set_blocking(device, not relayed)
    return Attached(mountpoint, device, depth, relayed)


def detach(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount. Raises StillBound where it is in use, MountFailed where it cannot be done; not mounted is fine.

    `lazy`: take the name away now, and the mount when its last user has gone.
    """
    try:
        _detach(mountpoint, lazy=lazy)
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOENT):
            return
        if exc.errno == errno.EBUSY:
            raise StillBound(
                f"{mountpoint} is in use: a program has a file or its working directory there; end it, and try again."
            ) from None
        raise MountFailed(f"{mountpoint} cannot be unmounted: {exc.strerror}.") from None


def bind_read_only(source: Path, target: Path) -> None:
    """Bind-mount a directory read-only at another place. Raises MountFailed."""
    flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    try:
        _mount(os.fsencode(source), os.fsencode(target), b"none", _MS_BIND, b"")
        try:
            _mount(b"none", os.fsencode(target), b"none", flags, b"")
        except OSError:
            _detach(target, lazy=True)
            raise
    except OSError as exc:
        raise MountFailed(f"{source} cannot be bound at {target}: {exc.strerror}.") from None


def mount_device(mountpoint: Path, source: Path, *, allow_other: bool, read_only: bool, polled: bool = False) -> int:
    """Mount by mount(2); returns the descriptor that speaks for it, non-blocking if `polled`. Raises MountFailed."""
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | (os.O_NONBLOCK if polled else 0))
    options = f"fd={device},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    if allow_other:
        options += ",allow_other"
    if allow_other or not polled or not _may_everything():
        options += ",default_permissions"
    flags = _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if read_only else 0)
    try:
        _mount(os.fsencode(source), os.fsencode(mountpoint), FSTYPE.encode(), flags, options.encode())
    except OSError as exc:
        os.close(device)
        raise MountFailed(f"{mountpoint} cannot be mounted: {exc.strerror}.") from None
    return device


def _fusermount(mountpoint: Path, source: Path, *, allow_other: bool, read_only: bool) -> int:
    """Have fusermount3 mount; returns the descriptor that it sends over a socket of ours, as it does to libfuse."""
    name = str(source).replace("\\", "\\\\").replace(",", "\\,")
    options = ["default_permissions", "nosuid", "nodev", "subtype=fuse_ckpt", f"fsname={name}"]
    options += ["allow_other"] if allow_other else []
    options += ["ro"] if read_only else []
    near, far = socket.socketpair()
    with near, far:
        command = ["env", f"_FUSE_COMMFD={far.fileno()}", "fusermount3", "-o", ",".join(options), "--", str(mountpoint)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=[far.fileno()])
        if done.returncode != 0:
            words = done.stderr.strip().removeprefix("fusermount3: ") or "fusermount3 says no"
            raise MountFailed(f"{mountpoint} cannot be mounted: {words}.")
        _, (device, *_), _, _ = socket.recv_fds(near, 1, 1)
    os.set_inheritable(device, False)
    return device


def _may_everything() -> bool:
    """Whether whoever may enter a mount of ours, this user alone, is refused nothing by modes anyway.

    Then the kernel need not check them: it would ask for a directory's attributes after each name that is made in it.
    """
    return os.geteuid() == 0 and _has_capability(_CAP_DAC_OVERRIDE)


def _has_capability(number: int) -> bool:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> number & 1)


def _detach(mountpoint: Path, *, lazy: bool) -> None:
    if may_mount():
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
        _check(_libc.umount2(os.fsencode(_resolved(mountpoint)), flags))
        return
    if mount_at(mountpoint) is None:
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        number = errno.EBUSY if "busy" in done.stderr else errno.EPERM
        raise OSError(number, done.stderr.strip() or os.strerror(number))


def _mount(source: bytes, target: bytes, fstype: bytes, flags: int, options: bytes) -> None:
    _check(_libc.mount(source, target, fstype, ctypes.c_ulong(flags), options))


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _is_stale(mountpoint: Path) -> bool:
    try:
        os.statvfs(mountpoint)  # stat would be answered from the kernel's cache
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _resolved(mountpoint: Path) -> Path:
    """The path as the kernel shows it.

    What is mounted there is never looked at: it may be stale, and a daemon that asks its own mount waits for itself.
    """
    plain = _beside(mountpoint)
    if any(place.mountpoint == str(plain) for place in mounts()):
        return plain
    return Path(os.path.realpath(mountpoint)) if os.path.islink(plain) else plain


def _beside(mountpoint: Path) -> Path:
    return Path(os.path.realpath(mountpoint.parent)) / mountpoint.name if mountpoint.name else mountpoint


def _mountinfo() -> Iterator[Place]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.rstrip("\n").partition(" - ")
            fstype, source, _ = after.split(" ", 2)
            yield Place(_plain(before.split(" ")[4]), fstype, _plain(source))


def _plain(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits (proc_pid_mountinfo(5))."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field
