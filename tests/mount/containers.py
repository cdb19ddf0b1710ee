"""A container for a test: its own mount and pid namespace, another root directory, only what it needs of the host."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.mountpoints import APART
from tests.mount.runs import INPUT, OUTPUT, SCRIPTS

VOLUME = "/var/lib/fuse-ckpt"
PLACES = {OUTPUT: "/output-checkpoint", INPUT: "/input-checkpoint"}
NO_DEVICE = (*APART, "sh", "-c", 'mount -t tmpfs tmpfs /dev && exec "$@"', "sh")
NO_PRIVILEGE = (shutil.which("setpriv") or "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
_SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc")


def why_none() -> str | None:
    """Why this machine can run no container; None: it can."""
    if os.geteuid() != 0:
        return "needs root, to give the container CAP_SYS_ADMIN"
    return None if shutil.which("bwrap") else "bubblewrap is not installed (scripts/setup installs it)"


def contained(
    command: list[str],
    *,
    bound: Mapping[str, Path] | None = None,
    read_only: Mapping[str, Path] | None = None,
    device: bool = False,
    init: bool = False,
) -> list[str]:
    """The command line that runs `command` in a container.

    `bound`, `read_only`: directories of the host by their place in the container. `device`: give it /dev/fuse and
    CAP_SYS_ADMIN. `init`: it is pid 1 itself, as an ENTRYPOINT is.
    """
    line = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--chdir", "/"]
    for name in _SYSTEM:
        line += _copied(Path("/", name))
    line += ["--tmpfs", "/tmp"]  # before the next, for a checkout may lie below it
    for place in dict.fromkeys((sys.base_prefix, sys.prefix, str(SCRIPTS.parent))):
        line += ["--ro-bind", place, place]
    line += ["--proc", "/proc", "--dev", "/dev"]
    line += [word for place in PLACES.values() for word in ("--dir", place)]
    line += [word for place, path in (bound or {}).items() for word in ("--bind", str(path), place)]
    line += [word for place, path in (read_only or {}).items() for word in ("--ro-bind", str(path), place)]
    line += ["--dev-bind", "/dev/fuse", "/dev/fuse", "--cap-add", "CAP_SYS_ADMIN"] if device else ["--cap-drop", "ALL"]
    return [*line, *(["--as-pid-1"] if init else []), "--", *command]


def _copied(path: Path) -> list[str]:
    if path.is_symlink():
        return ["--symlink", os.readlink(path), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []
