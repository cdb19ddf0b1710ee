"""What is in the files of a checkpoint: their formats, and the tensors in all of them."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.contents import numpy_files, safetensors_files, torch_files
from fuse_ckpt.contents.archives import START as ZIP_START
from fuse_ckpt.contents.archives import Archive
from fuse_ckpt.contents.distributed import Records
from fuse_ckpt.contents.reading import BROKEN, MIB, Blobs, TooMuch, Unreadable, Window
from fuse_ckpt.contents.scanning import is_records
from fuse_ckpt.contents.tensors import Problem, Source, Tensor
from fuse_ckpt.model import Entry, Kind

INDEX_MAX = 32 * MIB
_INDEX = ".index.json"

_Found = tuple[str, Iterable[Tensor]]  # the format's name, the tensors


class FileContents(Struct, frozen=True):
    """A file of a checkpoint. `format` is "" where we know none."""

    path: str
    digest: str
    size: int
    format: str
    tensors: int


class Contents(Struct, frozen=True):
    """All that could be found in a checkpoint."""

    files: tuple[FileContents, ...]
    tensors: tuple[Tensor, ...]
    problems: tuple[Problem, ...]


def look(entries: Iterable[Entry], blobs: Blobs) -> Contents:
    """Look into each file. What cannot be read is a problem, not an error. Raises CorruptBlob, OSError."""
    files = sorted((entry for entry in entries if entry.kind is Kind.FILE), key=lambda entry: entry.path)
    looker = _Looker({entry.path: entry.digest for entry in files}, blobs)
    found = tuple(looker.file(entry) for entry in files)
    groups = looker.groups(found)
    tensors = (replace(tensor, group=groups.get(tensor.group, tensor.group)) for tensor in looker.tensors)
    return Contents(found, tuple(tensors), tuple(looker.problems))


class _Looker:
    def __init__(self, digests: Mapping[str, str], blobs: Blobs) -> None:
        self._digests = digests
        self._blobs = blobs
        self.tensors: list[Tensor] = []
        self.problems: list[Problem] = []

    def file(self, entry: Entry) -> FileContents:
        before = len(self.tensors)
        form = ""
        with self._blobs(entry.digest) as file:
            try:
                form, tensors = self._found(Window.whole(file), Source(entry.path, entry.digest))
                for tensor in tensors:
                    self.tensors.append(tensor)
            except TooMuch as error:
                self._problem(entry.path, str(error), corrupt=False)
            except Unreadable as error:
                self._problem(entry.path, str(error))
            except MemoryError:
                self._problem(entry.path, "is too large to be read here", corrupt=False)
            except BROKEN:
                self._problem(entry.path, "is cut off or broken")
        return FileContents(entry.path, entry.digest, entry.size, form, len(self.tensors) - before)

    def groups(self, files: Sequence[FileContents]) -> dict[str, str]:
        """The name that the shards of an index have together, for each shard."""
        groups: dict[str, str] = {}
        for file in files:
            if not file.path.endswith(_INDEX) or file.size > INDEX_MAX:
                continue
            with self._blobs(file.digest) as opened:
                try:
                    index = msgspec.json.decode(opened.read(), type=_Index)
                except (msgspec.MsgspecError, RecursionError, ValueError):
                    self._problem(file.path, "is no index of shards, or cut off")
                    continue
            for shard in set(index.weight_map.values()):
                groups[posixpath.join(posixpath.dirname(file.path), shard)] = file.path.removesuffix(_INDEX)
        return groups

    def _problem(self, path: str, what: str, *, corrupt: bool = True) -> None:
        self.problems.append(Problem(path, what, corrupt))

    def _found(self, window: Window, source: Source) -> _Found:
        start = window.peek(64)
        if source.path.lower().endswith(".safetensors"):
            return "safetensors", safetensors_files.tensors_of(window, source)
        if is_records(source.path):
            return "distributed", Records(window, source.path).tensors(self._digests)
        if source.path.endswith(".distcp"):
            return "distributed", ()  # its .metadata tells
        if start.startswith(numpy_files.MAGIC):
            return "numpy npy", [numpy_files.array_tensor(window, source)]
        if start.startswith(torch_files.LEGACY_START):
            return "torch legacy", torch_files.legacy_tensors(window, source)
        if start.startswith(ZIP_START):
            return _found_in_archive(Archive(window), source)
        return ("pickle" if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" else ""), ()


class _Index(Struct):
    weight_map: dict[str, str] = {}


def _found_in_archive(archive: Archive, source: Source) -> _Found:
    if torch_files.is_torch(archive):
        form = "torchscript" if torch_files.is_script(archive) else "torch zip"
        return form, torch_files.archive_tensors(archive, source)
    if archive.members and all(member.name.endswith(".npy") for member in archive.members):
        return "numpy npz", numpy_files.archive_tensors(archive, source)
    return "zip", ()
