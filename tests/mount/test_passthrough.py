"""The kernel moves the data, or the daemon does: whatever programs do with open files, each byte is in its place."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from tests.conftest import MountJob
from tests.mount.harness import Mount, sha256, wait_until
from tests.mount.mappings import Mapping
from tests.semantics.parity import opened, put

pytestmark = pytest.mark.mount

ROUNDS = int(os.environ.get("TEST_ROUNDS", "10000"))
SLOT = 4096
OLD = b"committed" * 50_000

# fuse-ckpt in which the daemon can neither read nor write a file.
BLIND = """
import sys
from fuse_ckpt.cli import main
from fuse_ckpt.vfs import Filesystem

def refuse(*arguments):
    raise RuntimeError("a READ or WRITE has reached the daemon")
Filesystem.read = Filesystem.write = refuse
sys.exit(main(sys.argv[1:]))
"""

# fuse-ckpt that says at its end how many backing files it lent, and which it did not get back.
COUNTING = """
import atexit, json, os, sys
from fuse_ckpt.cli import main
from fuse_ckpt.fuse import passthrough

lend, give_back, lent, count = passthrough.lend, passthrough.give_back, set(), 0
def counted_lend(device, fd):
    global count
    number = lend(device, fd)
    assert number not in lent
    lent.add(number)
    count += 1
    return number
def counted_give_back(device, number):
    give_back(device, number)
    lent.remove(number)
def tell():
    with open(os.environ["TELL"], "w") as f:
        json.dump([count, sorted(lent)], f)
passthrough.lend, passthrough.give_back = counted_lend, counted_give_back
atexit.register(tell)
sys.exit(main(sys.argv[1:]))
"""


def test_no_read_or_write_reaches_the_daemon(passthrough: Mount, mount_job: MountJob) -> None:
    mounted = mount_job("blind", ready=False).mount(program=(sys.executable, "-c", BLIND))
    path = mounted.path / "m.pt"
    torch.save({"w": torch.arange(300_000)}, path)
    (found,) = mounted.wait_for("m.pt")
    for place in (path, mounted.by_id(found) / "m.pt"):
        assert torch.load(place)["w"].sum() == torch.arange(300_000).sum()
        assert torch.load(place, mmap=True)["w"][-1] == 299_999
        assert sha256(place) == sha256(path)
    with opened(path, os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"more")
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapping:
        mapping[:4] = b"head"
    assert path.read_bytes()[:4] + path.read_bytes()[-4:] == b"headmore"


# -- sealed files -----------------------------------------------------------------------------------------------------


def overwrite(path: Path) -> None:
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"NEW", 3)


def append(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"more")


def rewrite(path: Path) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"anew")


def cut(path: Path) -> None:
    os.truncate(path, 9)


Held = Callable[[Path], AbstractContextManager[Callable[[], bytes]]]


@contextmanager
def held_open(path: Path) -> Iterator[Callable[[], bytes]]:
    with opened(path, os.O_RDONLY) as one, opened(path, os.O_RDONLY) as other:
        yield lambda: min(os.pread(one, 1 << 20, 0), os.pread(other, 1 << 20, 0))


@contextmanager
def held_mapped(path: Path) -> Iterator[Callable[[], bytes]]:
    with opened(path, os.O_RDONLY) as fd:
        mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    with mapping:
        yield lambda: mapping[:]


@contextmanager
def held_by_the_view(path: Path) -> Iterator[Callable[[], bytes]]:
    (blob,) = (path.parent / ".checkpoints" / "by-name").glob(f"{path.name}@1/*")
    with held_open(blob) as opened_blob, held_mapped(blob) as mapped:
        yield lambda: min(opened_blob(), mapped())


@contextmanager
def held_by_nobody(path: Path) -> Iterator[Callable[[], bytes]]:
    yield lambda: b""


@pytest.mark.parametrize("change", [overwrite, append, rewrite, cut])
@pytest.mark.parametrize("hold", [held_by_nobody, held_open, held_mapped, held_by_the_view])
def test_committed_bytes_never_change_whoever_holds_them(
    shared: Mount, tmp_path: Path, change: Callable[[Path], None], hold: Held
) -> None:
    name = f"{hold.__name__}-{change.__name__}.dat"
    old = name.encode().ljust(40) + OLD  # equal bytes are kept once: they would not be this file's
    path, plain = put(shared.path / name, old), put(tmp_path / name, old)
    (first,) = shared.wait_for(name)
    change(plain)
    with hold(path) as seen:
        before = seen()
        change(path)
        assert path.read_bytes() == plain.read_bytes()
        _, second = shared.wait_for(name, 2)
        assert seen() == before
    for checkpoint, data in ((first, old), (second, plain.read_bytes())):
        assert sha256(shared.by_id(checkpoint) / name) == hashlib.sha256(data).hexdigest()


def test_a_change_by_one_name_leaves_the_committed_bytes_and_changes_the_other_name(mounted: Mount) -> None:
    path = put(mounted.path / "one.bin", OLD)
    (mounted.path / "models").mkdir()
    os.link(path, mounted.path / "models" / "other.bin")
    found = [mounted.wait_for(name)[0] for name in ("one.bin", "models/other.bin")]
    with held_open(path) as seen, held_mapped(mounted.path / "models" / "other.bin") as mapped:
        append(path)
        assert (mounted.path / "models" / "other.bin").read_bytes() == OLD + b"more"
        assert os.path.samefile(path, mounted.path / "models" / "other.bin")
        assert seen() == mapped() == OLD
    assert [sha256(mounted.by_id(one) / Path(one.name).name) for one in found] == [hashlib.sha256(OLD).hexdigest()] * 2


# -- open files -------------------------------------------------------------------------------------------------------

WORKER = """
import os, sys
path, slot, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd, reader = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
os.pwrite(fd, b"%d" % slot * size, slot * size)
copy = os.dup(fd)
os.close(fd)
if os.fork() == 0:  # with descriptors of its parent's
    os.pwrite(copy, b"%d" % (slot + 1) * size, (slot + 1) * size)
    os._exit(0)
os.wait()
assert os.pread(reader, size, (slot + 1) * size) == b"%d" % (slot + 1) * size
sys.stdin.read()
"""


@pytest.mark.parametrize("first", [os.O_RDONLY, os.O_RDWR], ids=["first_to_read", "first_to_write"])
def test_one_file_open_many_times_is_one_file_and_one_checkpoint(mount_job: MountJob, first: int) -> None:
    mounted = mount_job("job", "--quiet-period", "600")  # what is not asked for is not committed
    (mounted.path / "step_1").mkdir()
    path = put(mounted.path / "step_1" / "m.bin", bytes(8 * SLOT))
    assert mounted.cli("checkpoint", "commit", "job").returncode == 0
    assert len(mounted.committed("step_1")) == 1
    os.truncate(path, 8 * SLOT - 1)  # what is committed stays as it is: from here on this is a file of its own
    with opened(path, first) as held:
        workers = [
            subprocess.Popen(
                [sys.executable, "-S", "-c", WORKER, path, str(slot), str(SLOT)], stdin=subprocess.PIPE
            )
            for slot in (0, 2, 4)
        ]  # fmt: skip
        with opened(path, os.O_WRONLY | os.O_APPEND) as appending, mmap.mmap(held, 0, prot=mmap.PROT_READ) as mapped:
            expected = b"".join(b"%d" % slot * SLOT for slot in range(6))
            wait_until("all is written", lambda: mapped[: 6 * SLOT] == expected)
            os.write(appending, b"!")
            assert mounted.status()["open_files"] == 2 + 2 * len(workers)
        for worker in workers:
            worker.communicate(timeout=30)
            assert worker.returncode == 0
        assert os.pread(held, 9 * SLOT, 0) == path.read_bytes()
    assert mounted.cli("checkpoint", "commit", "job").returncode == 0
    assert mounted.status()["drafts"] == []
    (_, found) = mounted.committed("step_1")
    assert (mounted.by_id(found) / "m.bin").read_bytes() == expected + bytes(2 * SLOT - 1) + b"!"
    put(mounted.path / "after.bin")
    mounted.wait_for("after.bin")
    assert mounted.cli("checkpoint", "commit", "job").returncode == 0
    assert len(mounted.committed("step_1")) == 2
    wait_until("all is closed", lambda: mounted.status()["open_files"] == 0)


def test_an_open_file_lives_on_when_it_is_renamed_and_when_it_is_removed(mounted: Mount) -> None:
    with open(mounted.path / "a.bin", "w+b", buffering=0) as file:
        file.write(b"one")
        os.rename(mounted.path / "a.bin", mounted.path / "b.bin")
        file.write(b"two")
        put(mounted.path / "a.bin", b"another")
        assert (mounted.path / "b.bin").read_bytes() == b"onetwo"
        with opened(mounted.path / "b.bin", os.O_RDONLY) as reader:
            os.replace(mounted.path / "a.bin", mounted.path / "b.bin")
            file.write(b"three")
            assert (mounted.path / "b.bin").read_bytes() == b"another"
            os.unlink(mounted.path / "b.bin")
            file.write(b"four")
            assert os.pread(reader, 99, 0) == b"onetwothreefour"
        assert (os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_nlink) == (15, 0)
        put(mounted.path / "b.bin", b"third")
        file.seek(0)
        assert file.read() == b"onetwothreefour"
    assert (mounted.path / "b.bin").read_bytes() == b"third"
    wait_until("the third is kept", lambda: any(one.size == 5 for one in mounted.committed("b.bin")))


# -- mappings ---------------------------------------------------------------------------------------------------------


def committed_so_far(mounted: Mount, name: str, mark: str) -> list[bytes]:
    """The bytes of each checkpoint of that name once a file that is written now has been committed."""
    put(mounted.path / mark, mark.encode())
    mounted.wait_for(mark)
    return [(mounted.by_id(one) / name).read_bytes() for one in mounted.committed(name)]


def test_nothing_is_sealed_while_a_mapping_that_may_write_it_lives(mounted: Mount) -> None:
    with opened(mounted.path / "m.bin", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"a" * SLOT)
        mapping = Mapping(fd, SLOT)
    assert committed_so_far(mounted, "m.bin", "one.bin") == []
    mapping.write(5, b"late")
    assert committed_so_far(mounted, "m.bin", "two.bin") == []
    mapping.close()
    (found,) = mounted.wait_for("m.bin")
    assert (mounted.by_id(found) / "m.bin").read_bytes() == b"aaaaalate".ljust(SLOT, b"a")


def test_what_only_a_mapping_changed_after_the_close_is_a_checkpoint(mounted: Mount) -> None:
    path = put(mounted.path / "m.bin", b"a" * SLOT)
    mounted.wait_for("m.bin")
    with opened(path, os.O_RDWR) as fd:
        mapping = Mapping(fd, SLOT)
    assert committed_so_far(mounted, "m.bin", "one.bin") == [b"a" * SLOT]
    mapping.write(0, b"late")
    assert committed_so_far(mounted, "m.bin", "two.bin") == [b"a" * SLOT]
    mapping.close()
    _, found = mounted.wait_for("m.bin", 2)
    assert (mounted.by_id(found) / "m.bin").read_bytes() == b"late".ljust(SLOT, b"a")


@pytest.mark.parametrize("by_mapping", [False, True], ids=["descriptor", "mapping"])
def test_what_can_still_be_written_after_the_daemons_death_is_not_sealed_by_the_next(
    passthrough: Mount, by_mapping: bool
) -> None:
    mounted = passthrough
    fd = os.open(mounted.path / "m.bin", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"a" * SLOT)
    mapping = Mapping(fd, SLOT)
    put(mounted.path / "whole.bin")
    mounted.kill()
    gone = pytest.raises(OSError, match="Transport")
    if by_mapping:
        with gone:
            os.close(fd)
    else:
        mapping.close()
    mounted.mount()
    assert committed_so_far(mounted, "m.bin", "one.bin") == []
    if by_mapping:
        mapping.write(0, b"late")
        mapping.close()
    else:
        os.pwrite(fd, b"late", 0)
        with gone:
            os.close(fd)
    (found,) = mounted.wait_for("m.bin")
    assert (mounted.by_id(found) / "m.bin").read_bytes() == b"late".ljust(SLOT, b"a")
    assert len(mounted.wait_for("whole.bin")) == 1


# -- many rounds ------------------------------------------------------------------------------------------------------


def memory(pid: int) -> int:
    """Resident bytes of a process that are its own: pages of mapped files come and go as the kernel likes."""
    return int(re.findall(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)[0]) << 10


def open_and_close(mounted: Mount, blob: Path, rounds: int) -> None:
    """Working file and blob, for reading and for writing, new and removed, open once and open twice."""
    path = mounted.path / "there.log"
    for number in range(rounds // 5):
        with opened(path, os.O_RDONLY), opened(path, os.O_RDWR) as fd:
            os.pwrite(fd, b"%d" % number, 0)
        with opened(blob, os.O_RDONLY) as fd:
            assert os.pread(fd, 4, 0) == b"0123"
        with opened(path.with_suffix(".tmp"), os.O_CREAT | os.O_RDWR):
            os.unlink(path.with_suffix(".tmp"))
        with opened(path, os.O_WRONLY | os.O_TRUNC):
            pass


@pytest.mark.timeout(3600)
def test_many_rounds_of_open_and_close_leak_nothing(
    mount_job: MountJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELL", str(tmp_path / "lent"))
    mounted = mount_job(ready=False).mount(program=(sys.executable, "-c", COUNTING))
    passes = mounted.data_path == "passthrough"
    put(mounted.path / "m.bin")
    put(mounted.path / "there.log")
    (found,) = mounted.wait_for("m.bin")
    blob = mounted.by_id(found) / "m.bin"
    open_and_close(mounted, blob, 1000)
    assert mounted.daemon is not None
    descriptors, resident = mounted.daemon.descriptors(), memory(mounted.pid)
    open_and_close(mounted, blob, ROUNDS)
    wait_until("all is closed", lambda: mounted.daemon and not mounted.daemon.descriptors() - descriptors)
    assert mounted.status()["open_files"] == 0
    assert memory(mounted.pid) - resident < 4 << 20
    mounted.umount()
    lent, left = json.loads((tmp_path / "lent").read_text())
    assert left == []
    assert lent >= ROUNDS // 5 * 4 if passes else lent == 0
