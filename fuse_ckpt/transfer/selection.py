"""Which entries of a manifest are meant, and whether their names stay inside a directory. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from fuse_ckpt.errors import Corrupt, NotFound
from fuse_ckpt.model import Entry, Kind


def chosen(entries: Sequence[Entry], include: Sequence[str]) -> list[Entry]:
    """The entries, or those that fit one of the globs `include` (by path or by name), if there are any.

    Errors: Corrupt (a name that would leave the directory, or lies below a file or a symlink), NotFound (no file fits).
    """
    check_inside(entries)
    if not include:
        return list(entries)
    fitting = [entry for entry in entries if entry.kind is not Kind.DIRECTORY and _fits(entry.path, include)]
    if not fitting:
        raise NotFound(f"No file of the checkpoint fits {' '.join(include)}: see its files with checkpoint inspect.")
    return fitting


def check_inside(entries: Sequence[Entry]) -> None:
    """Raise Corrupt where an entry's path is none that a plain directory could hold, together with the others."""
    leaves = set()
    for entry in entries:
        if not is_inside(entry.path):
            raise Corrupt(f"The checkpoint's manifest names {entry.path!r}, which is no path inside a directory.")
        if entry.kind is not Kind.DIRECTORY:
            leaves.add(entry.path)
    for entry in entries:
        above = next((parent for parent in parents(entry.path) if parent in leaves), None)
        if above is not None:
            raise Corrupt(f"The checkpoint's manifest names {entry.path!r}, but {above!r} is no directory in it.")


def is_inside(path: str) -> bool:
    """Whether `path` names something below the directory that it is relative to."""
    try:
        path.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return all(part not in ("", ".", "..") and "\0" not in part for part in path.split("/"))


def parents(path: str) -> list[str]:
    """The directories that `path` lies in, outermost first: "a", "a/b" for "a/b/c"."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


def total_size(entries: Sequence[Entry]) -> int:
    """The bytes of the files among `entries`."""
    return sum(entry.size for entry in entries if entry.kind is Kind.FILE)


def _fits(path: str, globs: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, glob) or fnmatchcase(name, glob) for glob in globs)
