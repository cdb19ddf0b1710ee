"""Small disks in files, mounted by loop devices: made, filled, cut off, taken away. Root only."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

from scripts.ordeals.mounts import OrdealError, mounted_below, wait_until

SIZES = {"ext4": 128 << 20, "xfs": 320 << 20}  # bytes; XFS wants at least 300 MiB
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, _IOR('X', 125, u32)
_WITHOUT_FLUSH = 2  # the journal too stays as it is on the disk


def available() -> list[str]:
    """The filesystems that can be made here."""
    return [name for name, command in _MAKE.items() if shutil.which(command[0]) is not None]


def make(image: Path, filesystem: str, size: int | None = None) -> None:
    """Make a filesystem of `size` bytes in the new file `image`. Raises OrdealError."""
    with image.open("wb") as file:
        file.truncate(size or SIZES[filesystem])
    run(*_MAKE[filesystem], str(image))


def attach(file: Path) -> str:
    """The loop device that stands for `file` from now on."""
    return run("losetup", "-f", "--show", str(file))


def release(device: str) -> None:
    run("losetup", "-d", device)


def mount(source: str | Path, place: Path, *options: str) -> None:
    """Mount a device, or an image by a loop device of its own, which goes with the mount."""
    place.mkdir(exist_ok=True)
    loop = [] if str(source).startswith("/dev/") else ["loop"]
    run("mount", "-o", ",".join([*loop, *options] or ["defaults"]), str(source), str(place))


def umount(place: Path) -> None:
    """Unmount, as soon as nobody uses it."""
    wait_until(
        f"{place} is unmounted",
        lambda: subprocess.run(["umount", str(place)], capture_output=True, check=False).returncode == 0,
    )


def cut(place: Path) -> None:
    """From now on nothing more reaches the disk of a mounted filesystem, not even its journal: the plug is pulled."""
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
    finally:
        os.close(fd)


def plug_in_again(image: Path, place: Path) -> None:
    """Unmount what was cut off and mount it again, as a machine that starts."""
    umount(place)
    # The dead superblock can outlive umount for a moment; a mount would find it instead of the disk.
    wait_until(f"{image} is let go", lambda: run("losetup", "-j", str(image)) == "")
    mount(image, place)


def run(*command: str) -> str:
    """What a command prints. Raises OrdealError with its own words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OrdealError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


def clear(top: Path) -> None:
    """Whatever is mounted below `top`, and the loop devices of files below it, go: the last resort."""
    for place in mounted_below(top):
        subprocess.run(["umount", "-l", place], capture_output=True, check=False)
    listed = subprocess.run(
        ["losetup", "-l", "-n", "-O", "NAME,BACK-FILE"], capture_output=True, text=True, check=False
    )
    for line in listed.stdout.splitlines():
        device, _, file = line.partition(" ")
        if file.strip().startswith(f"{top}/"):
            subprocess.run(["losetup", "-d", device], capture_output=True, check=False)
