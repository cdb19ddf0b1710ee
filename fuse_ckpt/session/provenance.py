"""Where a run begins, and from which sources: what its record says on the day when somebody asks how a model was made.

Nothing here may fail a run, hold it up for more than GIT_PATIENCE, or execute anything of the training's: the revision
and the versions are read from files. Git is asked one thing while the run is set up: whether the sources were modified.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from fuse_ckpt.model import Provenance

GIT_PATIENCE = 1.0  # seconds, from the beginning
LIBRARIES = (
    *("accelerate", "deepspeed", "diffusers", "flax", "jax", "keras", "lightning", "numpy", "peft"),
    *("pytorch_lightning", "safetensors", "sentence_transformers", "tensorflow", "torch", "transformers", "trl"),
)
_STATUS = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
_LARGEST = 4 << 20  # bytes that are read of a file of git's: packed-refs of a repository with 50,000 branches
_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_INSTALLED = re.compile(r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[^-]+)\.dist-info")
_UNTOLD = (OSError, LookupError, ValueError, ImportError)

T = TypeVar("T")


class Sources:
    """The working directory of a run that is about to start, of which git is asked while the run is set up."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._deadline = time.monotonic() + GIT_PATIENCE
        self._git = None if directory is None else _or_none(lambda: _ask_git(directory))

    @classmethod
    def here(cls) -> Self:
        """Those of this process's own working directory, which the command starts in."""
        return cls(_or_none(Path.cwd))

    def provenance(self, program: str) -> Provenance:
        """What can be told of a run of `program` (a path). Never raises."""
        directory = self._directory
        dirty = _or_none(self._modified)
        self.close()
        return Provenance(
            host=_or_none(socket.gethostname),
            user=_or_none(_user),
            directory=None if directory is None else str(directory),
            revision=None if directory is None else _or_none(lambda: revision(directory)),
            versions=_or_none(lambda: versions(Path(program))) or {},
            dirty=dirty,
        )

    def _modified(self) -> bool | None:
        """Whether git lists a modified file; None where it says nothing in time, or this is no repository."""
        if self._git is None or self._git.stdout is None:
            return None
        answer = select.poll()
        answer.register(self._git.stdout, select.POLLIN)
        if not answer.poll(self._left() * 1000):
            return None
        if os.read(self._git.stdout.fileno(), 1):
            return True
        try:
            return False if self._git.wait(self._left()) == 0 else None
        except subprocess.TimeoutExpired:
            return None

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End git, whatever it is doing; a second close does nothing."""
        git, self._git = self._git, None
        if git is None:
            return
        git.kill()
        if git.stdout is not None:
            git.stdout.close()
        if git.poll() is None:
            git.returncode = 0  # whoever reaps our children reaps it: a disk may hold it for long, and us with it


def _ask_git(directory: Path) -> subprocess.Popen[bytes]:
    # Git would run what the repository's own configuration calls a monitor, and refresh its index beside the training.
    command = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(directory), *_STATUS)
    silent = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=silent, stdout=subprocess.PIPE, stderr=silent)


def revision(directory: Path) -> str | None:
    """The commit that is checked out where `directory` lies, read as git would. Raises OSError, ValueError."""
    git = _git_directory(directory)
    if git is None:
        return None
    head = _text(git / "HEAD")
    if not head.startswith("ref: "):
        return _object(head)
    reference = head.removeprefix("ref: ")
    shared = git / _text(git / "commondir") if (git / "commondir").exists() else git  # a worktree of its own
    for place in (git, shared):
        with contextlib.suppress(FileNotFoundError):
            return _object(_text(place / reference))
    packed = (line.split(" ") for line in _text(shared / "packed-refs").splitlines())
    return next((_object(words[0]) for words in packed if words[1:] == [reference]), None)


def _git_directory(directory: Path) -> Path | None:
    for place in (directory, *directory.parents):
        git = place / ".git"
        if git.is_dir():
            return git
        if git.is_file():  # of a worktree or a submodule: "gitdir: PATH"
            return place / _text(git).removeprefix("gitdir: ")
    return None


def _text(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_LARGEST).decode(errors="surrogateescape").strip()


def _object(text: str) -> str | None:
    return text if _OBJECT.fullmatch(text) else None


def versions(program: Path) -> dict[str, str]:
    """The versions of this program, and of Python and the known libraries that are installed beside `program`."""
    found = {"fuse-ckpt": version("fuse-ckpt")}
    for packages in _site_packages(program):
        number = packages.parent.name.removeprefix("python")
        if "." in number:
            found.setdefault("python", number)
        for entry in sorted(os.listdir(packages)):
            installed = _INSTALLED.fullmatch(entry)
            if installed and installed["name"].lower() in LIBRARIES:
                found.setdefault(installed["name"].lower(), installed["version"])
    return found


def _site_packages(program: Path) -> Iterator[Path]:
    """Where a Python program finds its libraries; nothing for a program that is not known to be one."""
    prefix = program.parent.parent
    environment = any((prefix / mark).exists() for mark in ("pyvenv.cfg", "conda-meta"))
    if environment or program.name.startswith("python"):
        for pattern in ("lib/python3*/site-packages", "local/lib/python3*/dist-packages", "lib/python3/dist-packages"):
            yield from sorted(prefix.glob(pattern))


def _user() -> str:
    number = os.geteuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _or_none(look: Callable[[], T]) -> T | None:
    with contextlib.suppress(*_UNTOLD):
        return look()
    return None
