"""A store, checkpoints to send, and two places to send them to: SeaweedFS, and a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from fuse_ckpt.model import Checkpoint, Connection, Entry, Kind, Metadata, NewCheckpoint, Provider, Shape, Unit
from fuse_ckpt.store import Store
from fuse_ckpt.transfer import Place, Remote
from tests.transfer import proxy
from tests.transfer.proxy import Proxy
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed

NS = 1_700_000_000_123_456_789


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def file(store: Store, path: str, data: bytes, mode: int = 0o644) -> Entry:
    """An entry whose bytes are in the store."""
    source = store.layout.jobs / "source"
    source.unlink(missing_ok=True)
    source.write_bytes(data)
    adopted = store.adopt(source)
    source.unlink()
    return Entry(path, Kind.FILE, mode, NS, size=len(data), digest=adopted.digest)


def link(path: str, target: str) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, NS, target=target)


def publish(store: Store, entries: Sequence[Entry], **more: object) -> Checkpoint:
    store.ensure_job("job", 0)
    unit = Unit("checkpoint-1", Shape.DIRECTORY)
    metadata = Metadata(step=1, train_loss=0.5)
    return store.publish(NewCheckpoint("job", unit, "0", NS, metadata, tuple(entries), **more))  # type: ignore[arg-type]


Save = Callable[..., Checkpoint]


@pytest.fixture
def save(store: Store) -> Save:
    """Publish files (path → bytes) and symlinks (path → target) as a checkpoint."""

    def save(files: Mapping[str, bytes], links: Mapping[str, str] | None = None, **more: object) -> Checkpoint:
        entries = [file(store, path, data) for path, data in files.items()]
        entries += [link(path, target) for path, target in (links or {}).items()]
        return publish(store, entries, **more)

    return save


@pytest.fixture
def directory(tmp_path: Path) -> Remote:
    """A directory as an object store."""
    root = tmp_path / "archive"
    root.mkdir()
    return Remote(Connection("disk", Provider.FILE, 1, root=str(root)), "", NOWHERE)


@pytest.fixture(params=["s3", "file"])
def remote(request: pytest.FixtureRequest) -> Remote:
    """Each kind of object store that there is here."""
    if request.param == "file":
        found: Remote = request.getfixturevalue("directory")
        return found
    server: Seaweed = request.getfixturevalue("seaweed")
    return server.remote()


@pytest.fixture
def there(request: pytest.FixtureRequest, remote: Remote) -> Place:
    """A place that is the test's own."""
    name = "".join(char if char.isalnum() else "-" for char in request.node.name)
    return Place(BUCKET if remote.bucket else "", f"tests/{name}")


@pytest.fixture
def faulty(seaweed: Seaweed) -> Iterator[Proxy]:
    """A proxy before SeaweedFS that passes everything on until it is told otherwise."""
    with proxy.before(seaweed.port) as found:
        yield found


def objects(remote: Remote, place: Place) -> dict[str, bytes]:
    """What lies at a place: name → bytes."""
    start = len(place.prefix) + 1
    return {key[start:]: remote.get(key, 1 << 30) or b"" for key in remote.list(place.prefix)}


def place_in_bucket(name: str) -> Place:
    return Place(BUCKET, f"tests/{name}")
