"""Files of the read view whose bytes are elsewhere: an open waits for them, and everything else goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from blake3 import blake3

from fuse_ckpt.errors import StorageFailed
from fuse_ckpt.fuse.errno import number_of
from fuse_ckpt.model import Checkpoint, Entry, Kind, Manifest, Metadata, Replica, Shape, Stage, State
from fuse_ckpt.store import Store
from fuse_ckpt.vfs import Filesystem, browse_filesystem
from tests.vfs.kernel import CALLER, Kernel, Mounted, mounted, run

ID = "0196f0a5-0000-7000-8000-000000000001"
DATA = b"from far away"
DIGEST = blake3(DATA).hexdigest()
FILE = f".checkpoints/by-id/{ID}/weights".encode()


class Far:
    """What a mount asks for bytes: waits until it is told to go on."""

    def __init__(self, tmp_path: Path) -> None:
        self.store: Store
        self.asked: list[tuple[str, str]] = []
        self.go = trio.Event()
        self.error: Exception | None = None
        self._source = tmp_path / "delivered"

    async def fetch(self, checkpoint: str, digest: str) -> None:
        self.asked.append((checkpoint, digest))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self._source.write_bytes(DATA)
        self.store.receive(checkpoint, digest, self._source)
        self._source.unlink()


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)


@pytest.fixture
def mount(tmp_path: Path, far: Far) -> Iterator[Mounted]:
    with mounted(tmp_path / "store", fetch=far.fetch) as mount:
        far.store = mount.store
        yield mount


def add(store: Store, *, described: bool = True) -> None:
    head = Checkpoint(
        ID, "job", "step-1", Shape.DIRECTORY, 0, "0", State.AVAILABLE, 5, 5, len(DATA), 1, Metadata(resumable=True),
        settled=True, remote="lake",
    )  # fmt: skip
    store.add_remote([(head, Replica("lake", Stage.REPLICATED, 5, group="g"))])
    if described:
        store.learn(Manifest(head, (Entry("weights", Kind.FILE, 0o644, 1, len(DATA), DIGEST),)))


def opening(filesystem: Filesystem, nid: int, found: list[object]) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        try:
            found.append(await filesystem.open(nid, os.O_RDONLY, CALLER))
        except Exception as error:
            found.append(error)

    return work


def test_an_open_waits_and_others_go_on(mount: Mounted, far: Far) -> None:
    add(mount.store)
    kernel, filesystem = mount.kernel, mount.kernel.filesystem
    assert kernel.stat(FILE).size == len(DATA)
    assert far.asked == [], "to look at it is no reason to fetch it"
    nid, other = kernel.walk(FILE), None
    kernel.put(b"local", b"here")
    found: list[object] = []

    async def both() -> None:
        nonlocal other
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opening(filesystem, nid, found))
            await trio.testing.wait_all_tasks_blocked()
            other = await filesystem.open(kernel.walk(b"local"), os.O_RDONLY, CALLER)
            assert found == []
            far.go.set()

    run(both)
    assert far.asked == [(ID, DIGEST)]
    assert isinstance(found[0], int)
    assert filesystem.read(found[0], 0, 100) == DATA
    for fh in (found[0], other):
        assert isinstance(fh, int)
        filesystem.release(fh)
    assert kernel.get(FILE) == DATA
    assert len(far.asked) == 1, "it is here now"


def test_what_cannot_be_fetched_is_an_error_of_that_open(mount: Mounted, far: Far) -> None:
    add(mount.store)
    far.error = StorageFailed("nobody answers")
    far.go.set()
    found: list[object] = []
    run(opening(mount.kernel.filesystem, mount.kernel.walk(FILE), found))
    assert isinstance(found[0], StorageFailed)
    assert number_of(found[0]) == errno.EIO
    assert mount.kernel.filesystem.open_files == 0
    far.error = None
    assert mount.kernel.get(FILE) == DATA


def test_to_write_is_refused_at_once(mount: Mounted, far: Far) -> None:
    add(mount.store)
    with pytest.raises(OSError, match="Read-only"):
        mount.kernel.filesystem.open_now(mount.kernel.walk(FILE), os.O_WRONLY, CALLER)
    assert far.asked == []


def test_one_of_which_nothing_but_the_name_is_known_is_not_shown(mount: Mounted) -> None:
    add(mount.store, described=False)
    assert mount.kernel.listdir(b".checkpoints/by-id") == []
    assert b"latest" not in mount.kernel.listdir(b".checkpoints")


def test_where_nobody_can_fetch_they_are_not_shown(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store, store.uses("a test") as uses:
        add(store)
        kernel = Kernel()
        disk = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        kernel.filesystem = browse_filesystem(store, disk, uses, kernel.forget_name)
        assert kernel.listdir(b"job/by-id") == []
        os.close(disk)
