"""Shared stores on each kind of object store, and ranks that write to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from blake3 import blake3
from uuid_utils import uuid7

from fuse_ckpt.model import Connection, Entry, Kind, Metadata, Provider, Shape
from fuse_ckpt.sharing import Part, PartFile, SharedStore, group_of
from fuse_ckpt.transfer import Place, Probed, Remote
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed

NS = 1_700_000_000_123_456_789
JOB = "job"


@pytest.fixture(params=["s3", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    """Each kind of object store that there is here."""
    if request.param == "file":
        (tmp_path / "archive").mkdir()
        return Remote(Connection("disk", Provider.FILE, 1, root=str(tmp_path / "archive")), "", NOWHERE)
    server: Seaweed = request.getfixturevalue("seaweed")
    return server.remote()


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Place:
    """A place that is the test's own, in an object store."""
    name = "".join(char if char.isalnum() else "-" for char in request.node.name)
    return Place(BUCKET, f"sharing/{name}")


@pytest.fixture
def shared(remote: Remote, place: Place) -> SharedStore:
    """A shared store that was just made."""
    where = place if remote.bucket else Place("", place.prefix)
    return established(SharedStore(remote, where))


def probed(place: Place, winners: int = 1) -> Probed:
    return Probed(place, True, winners > 1, winners, True, True)


def established(store: SharedStore) -> SharedStore:
    store.establish(probed(store.place), NS)
    return store


class Node:
    """A machine that writes to a shared store as one rank of a job, and its directory."""

    def __init__(self, store: SharedStore, directory: Path, rank: int = 0, nodes: int = 1, attempt: str = "0") -> None:
        self.store, self.rank, self.nodes, self.attempt = store, rank, nodes, attempt
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def group(self, name: str, generation: int = 1) -> str:
        return group_of(JOB, self.attempt, name, generation)

    def send(self, group: str, files: Mapping[str, bytes]) -> tuple[PartFile, ...]:
        """Put the bytes; what a part says of them."""
        return tuple(self._sent(group, path, data) for path, data in files.items())

    def part(self, name: str, files: Sequence[PartFile], **more: object) -> Part:
        group = self.group(name)
        fields: dict[str, object] = {"metadata": Metadata(step=1), "created_ns": NS, "sealed_ns": NS, **more}
        return Part(
            JOB, group, self.rank, self.nodes, name, Shape.DIRECTORY, 1, self.attempt, f"node-{self.rank}",
            str(uuid7()), files=tuple(files), **fields,  # type: ignore[arg-type]
        )  # fmt: skip

    def save(self, name: str, files: Mapping[str, bytes], **more: object) -> Part:
        """Put the bytes and the part; decides nothing."""
        part = self.part(name, self.send(self.group(name), files), **more)
        return self.store.put_part(part).part

    def _sent(self, group: str, path: str, data: bytes) -> PartFile:
        source = self.directory / "source"
        source.write_bytes(data)
        digest = blake3(data).hexdigest()
        key = self.store.put_data(JOB, group, self.rank, source, len(data), digest)
        return PartFile.of(Entry(path, Kind.FILE, 0o644, NS, len(data), digest), key)


MakeNode = Callable[..., Node]


@pytest.fixture
def node(shared: SharedStore, tmp_path: Path) -> MakeNode:
    """A function that makes nodes of the shared store."""

    def make(rank: int = 0, nodes: int = 1, attempt: str = "0") -> Node:
        return Node(shared, tmp_path / f"node-{rank}", rank, nodes, attempt)

    return make


def bytes_of(store: SharedStore, group: str, directory: Path) -> dict[str, bytes]:
    """All files of a committed checkpoint, fetched: path → bytes."""
    found = {}
    directory.mkdir(exist_ok=True)
    for file in store.read(JOB, group).files:
        store.fetch_file(JOB, file, directory / "fetched")
        found[file.path] = (directory / "fetched").read_bytes()
    return found


def keys_below(store: SharedStore, remote: Remote, name: str = "") -> list[str]:
    """The keys of the job's objects, below its prefix."""
    start = store.place.key(f"j/{JOB}/")
    return sorted(key.removeprefix(start) for key in remote.list(store.place.key(f"j/{JOB}/{name}".rstrip("/"))))
