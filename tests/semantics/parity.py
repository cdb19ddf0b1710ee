"""The same program in the mount and in a plain directory beside it: what it sees must be the same."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Operation = Callable[[Path], Any]


class Operations(list[Operation]):
    """Programs that are to see the same in both places; each gets an empty directory, in which it stands."""

    def __call__(self, function: Operation) -> Operation:
        self.append(function)
        return function


def compare(program: Operation, inside: Path, beside: Path) -> None:
    """Run the program in both places, which do not exist yet, and compare what it saw and what it left."""
    seen = []
    for place in (inside, beside):
        place.mkdir()
        with contextlib.chdir(place):
            seen.append(program(place))
    assert seen[0] == seen[1]
    assert tree(inside) == tree(beside)


def outcome(call: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """What the call returns, or the name of its errno."""
    try:
        return call(*arguments, **more)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))


def put(path: Path, data: bytes = b"0123456789") -> Path:
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o666) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def tree(directory: Path) -> list[tuple[Any, ...]]:
    """All that a program can see of a directory, times and inode numbers apart."""
    found = []
    for where, directories, names in os.walk(os.fsencode(directory)):
        for name in [b".", *names, *directories]:
            path = os.path.join(where, name)
            status = os.lstat(path)
            content: bytes = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            place = os.path.relpath(path, os.fsencode(directory))
            found.append((place, oct(status.st_mode), status.st_nlink, size, status.st_uid, status.st_gid, content))
    return sorted(found)
