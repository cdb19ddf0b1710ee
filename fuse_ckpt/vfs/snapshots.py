"""The read view: what committed checkpoints look like as a read-only filesystem. The only place that says so.

    by-id/<id>/…          a checkpoint's files at its root          by-id/<id>.json   all that is known of it
    by-name/<name>@<n>/…  the same by name and version; nested names are nested directories, the root checkpoint is @<n>
    latest                a symlink to by-id/<id>
    layout/<id>/…         the files under their path in the output directory, with companions and symlinks beside them

Paths are tuples of names below the view of one job. Pure lookups over the store: nothing here is open, and nothing is
remembered that the store's generation does not guard.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec

from fuse_ckpt.errors import CorruptRecord, NotFound
from fuse_ckpt.model import Checkpoint, Entry, Kind, Manifest, State
from fuse_ckpt.store import Store

DIRECTORY_MODE = stat.S_IFDIR | 0o555
_TOP = ("by-id", "by-name", "layout")
_SHOWN = frozenset({State.AVAILABLE, State.FAILED})  # failed ones by lookup alone, for salvage

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One place in the view. `same` finds it under its other paths: equal for one file of one checkpoint."""

    mode: int
    mtime_ns: int
    size: int = 0
    digest: str = ""  # a file of a checkpoint
    data: bytes | None = None  # a file that we write ourselves
    target: str = ""  # a symlink
    same: tuple[str, str] | None = None
    lasting: bool = True  # False: the kernel must ask again each time, it may be gone or another
    checkpoint: str = ""  # the id of the one that it is in
    edition: int = 0  # another one is another inode: who uses a directory keeps what it had
    tree: Tree | None = None  # a directory of a checkpoint: what is below it, whatever becomes of the record
    inner: Path = ()  # where in `tree` it is


class Tree:
    """Entries as a tree of directories: each path, with the directories that no entry names made up."""

    def __init__(
        self, entries: Iterable[tuple[str, Entry]], root_mtime_ns: int, checkpoint_id: str, edition: int = 0
    ) -> None:
        self._checkpoint = checkpoint_id
        self._edition = edition
        self._nodes: dict[str, Node] = {"": Node(DIRECTORY_MODE, root_mtime_ns)}
        self._children: dict[str, dict[str, None]] = {"": {}}
        for path, entry in entries:
            if not _is_inside(path):
                raise CorruptRecord(f"The manifest of checkpoint {checkpoint_id} names {path!r}, which is no path.")
            self._nodes[path] = _node_of(entry, checkpoint_id)
            self._add_parents(path, root_mtime_ns)
            if entry.kind is Kind.DIRECTORY:
                self._children.setdefault(path, {})

    def node(self, path: Path) -> Node | None:
        found = self._nodes.get("/".join(path))
        if found is None or not stat.S_ISDIR(found.mode):
            return found
        return replace(found, checkpoint=self._checkpoint, edition=self._edition, tree=self, inner=path)

    def names(self, path: Path) -> list[str]:
        return list(self._children.get("/".join(path), ()))

    def _add_parents(self, path: str, mtime_ns: int) -> None:
        while path:
            parent, _, name = path.rpartition("/")
            self._children.setdefault(parent, {})[name] = None
            self._nodes.setdefault(parent, Node(DIRECTORY_MODE, mtime_ns))
            path = parent


class Snapshots:
    """The read view of one job. `also`: the id of a checkpoint that is shown by id whatever its job.

    `fetches`: bytes that are not here can be had, so that their checkpoints are shown too, if it is known what they
    are made of.
    """

    def __init__(self, store: Store, job: str, also: str | None = None, *, fetches: bool = False) -> None:
        self._also = also
        self._fetches = fetches
        self._store = store
        self._job = job
        self._generation = -1
        self._by_id: dict[str, Checkpoint] = {}
        self._changed_ns = 0  # when the newest of them was committed
        self._by_name: Tree = Tree((), 0, "")
        self._versions: dict[str, str] = {}  # name@n → id
        self._tree_of = lru_cache(maxsize=64)(self._read_tree)
        self._layout_of = lru_cache(maxsize=64)(self._read_layout)

    def node(self, path: Path) -> Node | None:
        """What lies at `path`; None if nothing does."""
        self._refresh()
        match path:
            case () | ("by-id",) | ("layout",):
                return Node(DIRECTORY_MODE, self._changed_ns, lasting=False)
            case ("latest",):
                return self._latest()
            case ("by-id", name) if name.endswith(".json"):
                return self._description(name.removesuffix(".json"))
            case ("by-id", checkpoint_id, *rest):
                return self._inside(checkpoint_id, tuple(rest), layout=False)
            case ("layout", checkpoint_id, *rest):
                return self._inside(checkpoint_id, tuple(rest), layout=True)
            case ("by-name", *rest):
                return self._named(tuple(rest))
        return None

    def names(self, path: Path) -> list[str]:
        """The names in the directory at `path`."""
        self._refresh()
        match path:
            case ():
                return [*_TOP, "latest"] if self._store.latest(self._job, here=True) else list(_TOP)
            case ("by-id",):
                return [name for found in self._available() for name in (found, f"{found}.json")]
            case ("layout",):
                return self._available()
            case ("by-id", checkpoint_id, *rest):
                return self._tree(checkpoint_id, layout=False).names(tuple(rest))
            case ("layout", checkpoint_id, *rest):
                return self._tree(checkpoint_id, layout=True).names(tuple(rest))
            case ("by-name", *rest):
                named, inner = self._split(tuple(rest))
                if named is not None:
                    return self._tree(named, layout=False).names(inner)
                return self._by_name.names(tuple(rest))
        return []

    def _refresh(self) -> None:
        generation = self._store.generation()
        if generation == self._generation:
            return
        found = self._store.checkpoints(self._job, states=_SHOWN)
        found = [one for one in found if one.remote is None or (self._fetches and one.described)]
        self._by_id = {checkpoint.id: checkpoint for checkpoint in (*self._input(), *found)}
        self._changed_ns = max((one.committed_ns for one in self._by_id.values()), default=0)
        self._versions = {f"{c.name}@{c.ordinal}": c.id for c in found if c.state is State.AVAILABLE}
        places = (
            (name, Entry(name, Kind.DIRECTORY, 0o555, self._changed_ns)) for name in self._versions if _is_inside(name)
        )
        self._by_name = Tree(places, self._changed_ns, "")
        self._generation = generation

    def _input(self) -> list[Checkpoint]:
        try:
            return [self._store.checkpoint(self._also)] if self._also is not None else []
        except NotFound:
            return []

    def _available(self) -> list[str]:
        return [c.id for c in self._by_id.values() if c.state is State.AVAILABLE]

    def _latest(self) -> Node | None:
        latest = self._store.latest(self._job, here=True)
        if latest is None:
            return None
        target = f"by-id/{latest.id}"
        return Node(stat.S_IFLNK | 0o777, latest.committed_ns, len(target), target=target, lasting=False)

    def _description(self, checkpoint_id: str) -> Node | None:
        checkpoint = self._by_id.get(checkpoint_id)
        if checkpoint is None:
            return None
        data = describe(self._store.manifest(checkpoint_id))
        mode = stat.S_IFREG | 0o444
        return Node(mode, checkpoint.committed_ns, len(data), data=data, lasting=False, edition=self._generation)

    def _inside(self, checkpoint_id: str, path: Path, *, layout: bool) -> Node | None:
        if checkpoint_id not in self._by_id:
            return None
        try:
            node = self._tree(checkpoint_id, layout=layout).node(path)
        except NotFound:
            return None
        if node is not None and not path:  # the door to a checkpoint: `delete` closes it at once
            return replace(node, lasting=False)
        return node

    def _named(self, path: Path) -> Node | None:
        checkpoint_id, inner = self._split(path)
        if checkpoint_id is not None:
            return self._inside(checkpoint_id, inner, layout=False)
        node = self._by_name.node(path)
        return None if node is None else replace(node, lasting=False, tree=None)

    def _split(self, path: Path) -> tuple[str | None, Path]:
        """The checkpoint whose name@n begins `path`, and the rest of the path."""
        for length in range(1, len(path) + 1):
            found = self._versions.get("/".join(path[:length]))
            if found is not None:
                return found, path[length:]
        return None, path

    def _tree(self, checkpoint_id: str, *, layout: bool) -> Tree:
        known = self._by_id.get(checkpoint_id)
        return (self._layout_of if layout else self._tree_of)(checkpoint_id, known.revision if known else 0)

    def _read_tree(self, checkpoint_id: str, revision: int) -> Tree:
        manifest = self._store.manifest(checkpoint_id)
        places = ((entry.path, entry) for entry in manifest.entries)
        return Tree(places, manifest.checkpoint.created_ns, checkpoint_id, revision)

    def _read_layout(self, checkpoint_id: str, revision: int) -> Tree:
        manifest = self._store.manifest(checkpoint_id)
        prefix = manifest.checkpoint.unit.prefix
        members = ((f"{prefix}/{entry.path}" if prefix else entry.path, entry) for entry in manifest.entries)
        companions = ((entry.path, entry) for entry in manifest.companions)
        return Tree((*members, *companions), manifest.checkpoint.created_ns, checkpoint_id, revision)


def describe(manifest: Manifest) -> bytes:
    """All that is known of a checkpoint, as the JSON file beside its directory."""
    return json.dumps(msgspec.to_builtins(manifest), indent=2).encode() + b"\n"


def _is_inside(path: str) -> bool:
    """Whether a path has no part that would mean a directory's self or its parent, or no name at all."""
    return not any(part in ("", ".", "..") for part in path.split("/"))


def _node_of(entry: Entry, checkpoint_id: str) -> Node:
    if entry.kind is Kind.DIRECTORY:
        return Node(DIRECTORY_MODE, entry.mtime_ns)
    if entry.kind is Kind.SYMLINK:
        size = len(entry.target.encode(errors="surrogateescape"))
        return Node(stat.S_IFLNK | 0o777, entry.mtime_ns, size, target=entry.target, checkpoint=checkpoint_id)
    mode = stat.S_IFREG | ((entry.mode | 0o444) & ~0o222 & 0o777)
    return Node(
        mode, entry.mtime_ns, entry.size, digest=entry.digest, same=(checkpoint_id, entry.path + ":" + entry.digest),
        checkpoint=checkpoint_id,
    )  # fmt: skip
