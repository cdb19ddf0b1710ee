"""Is a unit whole by its content? A few small reads per file, whatever its size; the data itself is not read.

Each format has a module of its own. Memory and time are bounded, whatever a file holds: what would take too much is
taken as whole.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress

from fuse_ckpt.staging.arrays import NUMPY_START, fault_of_hdf5, fault_of_numpy
from fuse_ckpt.staging.documents import beside, fault_of_json, fault_of_safetensors, is_index, shards_of
from fuse_ckpt.staging.pickled import CutOff
from fuse_ckpt.staging.reading import read_at
from fuse_ckpt.staging.torch_pickles import LEGACY_START, Stored, fault_of_pickle, stored
from fuse_ckpt.staging.units import is_mark, is_temporary
from fuse_ckpt.staging.zips import START as ZIP_START
from fuse_ckpt.staging.zips import fault_of_zip, fault_of_zips

_HDF5 = (".h5", ".hdf5")
_PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt")  # not .bin: raw numbers may look like the start of one
_NEVER_EMPTY = (*_PICKLES, *_HDF5, ".bin", ".npz", ".npy", ".keras", ".zip")
_PICKLE_START = b"\x80"
_RANK_DATA = re.compile(r"__(\d+)_\d+\.distcp")


def fault_of(
    root_fd: int,
    files: Mapping[str, str],
    *,
    described: Collection[str] = (),
    thorough: bool = False,
    part: int | None = None,
) -> str | None:
    """Why the unit whose files are `files` is not whole: one line. None: it is.

    `files`: the path of each → its name below the directory `root_fd`. `described`: directories whose .metadata was
    seen to come last, whatever the clock says. `thorough`: read all that can be compared with a checksum of its own.
    `part`: of which node's rank these files are, where several write the unit (None: one): what they name may be with
    the others, see `awaited`; the `.metadata` is the first one's to write.
    A type that cannot be checked counts as whole, a symlink too. Raises OSError where the disk cannot be read.
    """
    for path in sorted(files):
        fault = _fault_of_name(path) or _fault_of_file(root_fd, path, files, thorough, part)
        if fault is not None:
            return fault
    return _fault_of_distributed(root_fd, files, described, part)


def awaited(root_fd: int, files: Mapping[str, str]) -> dict[str, int]:
    """What a node's part of a unit says that other nodes must have: path → bytes at least. `files` as above, with paths
    below the unit's root. Raises OSError."""
    found: dict[str, int] = {}
    for path in sorted(files):
        name = posixpath.basename(path)
        if name.endswith(".distcp"):
            found |= {_metadata_of(path, files): 0}
        elif name.endswith(".metadata"):
            with suppress(CutOff):  # it is no whole one, whatever else it may be
                found |= {beside(path, one.path): one.end for one in _described(root_fd, files[path])}
        elif is_index(path):
            with _opened(root_fd, files[path]) as fd:
                found |= dict.fromkeys(() if fd is None else shards_of(fd, os.fstat(fd).st_size, path), 0)
    return {path: size for path, size in found.items() if path not in files}


def _fault_of_name(path: str) -> str | None:
    parts = path.split("/")
    if is_mark(parts[-1]):
        return f"{_shown(path)} says that the save was not finished"
    if any(map(is_temporary, parts)):
        return f"a temporary file, {_shown(path)}, is left"
    return None


def _fault_of_file(root_fd: int, path: str, files: Mapping[str, str], thorough: bool, part: int | None) -> str | None:
    with _opened(root_fd, files[path]) as fd:
        if fd is None:
            return f"{_shown(path)} is missing"
        status = os.fstat(fd)
        fault = None
        if stat.S_ISREG(status.st_mode):
            fault = _fault_of_content(fd, status.st_size, path, files if part is None else None, thorough)
    return None if fault is None else f"{_shown(path)} {fault}"


@contextmanager
def _opened(root_fd: int, name: str) -> Iterator[int | None]:
    """The file, open to be read; a symlink itself, with which nothing can be done; None where there is none."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags | os.O_RDONLY | os.O_NONBLOCK, dir_fd=root_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            yield None
            return
        if error.errno != errno.ELOOP:
            raise
        fd = os.open(name, flags | os.O_PATH, dir_fd=root_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _fault_of_content(fd: int, size: int, path: str, present: Collection[str] | None, thorough: bool) -> str | None:
    name = path.lower()
    if name.endswith(".safetensors"):
        return fault_of_safetensors(fd, size)
    if name.endswith(".json"):
        return fault_of_json(fd, size, path, present)
    if size == 0:
        return "is empty" if name.endswith(_NEVER_EMPTY) else None
    if name.endswith(_HDF5):
        return fault_of_hdf5(fd, size)
    return _fault_by_start(fd, size, name, thorough)


def _fault_by_start(fd: int, size: int, name: str, thorough: bool) -> str | None:
    start = read_at(fd, len(LEGACY_START), 0)
    if start.startswith(ZIP_START) and name.endswith(".distcp"):
        return fault_of_zips(fd, size)
    if start.startswith(ZIP_START):
        return fault_of_zip(fd, size, thorough=thorough)
    if name.endswith(_NEVER_EMPTY) and (ZIP_START.startswith(start) or _begins(LEGACY_START, start)):
        return "is cut off"  # within the bytes by which its format is known
    if start.startswith(NUMPY_START) or (NUMPY_START.startswith(start) and name.endswith(".npy")):
        return fault_of_numpy(fd, size)
    if start == LEGACY_START or (start.startswith(_PICKLE_START) and name.endswith(_PICKLES)):
        return fault_of_pickle(fd, size)
    return None


def _begins(whole: bytes, start: bytes) -> bool:
    return whole.startswith(start) and whole != start


def _fault_of_distributed(
    root_fd: int, files: Mapping[str, str], described: Collection[str], part: int | None
) -> str | None:
    """Whether every shard of a distributed checkpoint has a `.metadata` beside it that was written after it, and holds
    what that says."""
    seen: set[str] = set()
    for path in sorted(path for path in files if path.endswith(".distcp")):
        directory, metadata = posixpath.dirname(path), _metadata_of(path, files)
        if metadata not in files:
            if part:
                continue
            return f"{_shown(path)} has no .metadata beside it"
        if directory not in described and _mtime_ns(root_fd, files[metadata]) < _mtime_ns(root_fd, files[path]):
            return f"{_shown(metadata)} is older than {_shown(path)}"
        seen.add(metadata)
    faults = (_fault_of_described(root_fd, path, files, part) for path in sorted(seen))
    return next((fault for fault in faults if fault), None)


def _metadata_of(path: str, files: Collection[str]) -> str:
    """The file that describes a shard: the one of all, unless each rank wrote its own."""
    directory, name = posixpath.split(path)
    rank = _RANK_DATA.fullmatch(name)
    own = posixpath.join(directory, f"__{rank[1]}.metadata") if rank is not None else ""
    shared = posixpath.join(directory, ".metadata")
    return own if own in files and shared not in files else shared


def _fault_of_described(root_fd: int, metadata: str, files: Mapping[str, str], part: int | None) -> str | None:
    """Whether the files that a `.metadata` names are there, and long enough."""
    try:
        named = _described(root_fd, files[metadata])
    except CutOff:
        return f"{_shown(metadata)} is cut off: its pickle does not end"
    for one in named:
        path = beside(metadata, one.path)
        if path not in files:
            if part is not None:
                continue
            return f"{_shown(metadata)} names {_shown(path)}, which is missing"
        if os.stat(files[path], dir_fd=root_fd, follow_symlinks=False).st_size < one.end:
            return f"{_shown(path)} is cut off: {_shown(metadata)} says that {one.end} bytes are in it"
    return None


def _described(root_fd: int, name: str) -> list[Stored]:
    """What a `.metadata` says of the files beside it. Raises CutOff."""
    with _opened(root_fd, name) as fd:
        return [] if fd is None else stored(fd, os.fstat(fd).st_size)


def _mtime_ns(root_fd: int, name: str) -> int:
    return os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mtime_ns


def _shown(path: str) -> str:
    return path if path.isprintable() else ascii(path)
