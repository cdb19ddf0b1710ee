"""`browse`: the whole store, by job, read-only, live, for its owner."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_ckpt.model import Checkpoint
from scripts.mountpoints import is_mounted
from tests.mount.harness import detach, sha256, wait_until
from tests.mount.runs import Desk, listing, one_line, python

pytestmark = pytest.mark.mount

_SAVE = """
for name in sys.argv[1:]:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(name.encode() * 1000)
"""


def save(desk: Desk, job: str, *names: str) -> list[Checkpoint]:
    done = desk.run(job, "--restart", command=python(_SAVE, *names))
    assert done.returncode == 0, done.stderr
    return desk.committed(job)


@pytest.fixture
def browsed(desk: Desk, tmp_path: Path) -> Iterator[Path]:
    """A store with two jobs, browsed."""
    save(desk, "one", "a.bin")
    save(desk, "two", "step_1/m.bin", "step_1/n.bin")
    place = tmp_path / "all"
    place.mkdir()
    said = desk.cli("browse", str(place))
    assert said.returncode == 0, said.stderr
    assert str(place) in said.stdout
    yield place
    if is_mounted(place):
        said = desk.cli("umount", str(place))
        assert said.returncode == 0, said.stderr
    assert not is_mounted(place)


def test_the_store_is_shown_by_job_with_the_bytes_that_were_saved(browsed: Path, desk: Desk) -> None:
    assert sorted(os.listdir(browsed)) == ["one", "two"]
    (found,) = desk.committed("two")
    by_id = browsed / "two" / "by-id" / found.id
    assert sorted(os.listdir(by_id)) == ["m.bin", "n.bin"]
    assert (by_id / "m.bin").read_bytes() == b"step_1/m.bin" * 1000
    assert sha256(browsed / "two" / "by-name" / "step_1@1" / "n.bin") == sha256(by_id / "n.bin")
    assert found.id in (browsed / "two" / "by-id" / f"{found.id}.json").read_text()
    (other,) = desk.committed("one")
    assert os.listdir(browsed / "one" / "by-id" / other.id) == ["a.bin"]
    assert not (browsed / "one" / "by-id" / found.id).exists()


def test_what_was_pushed_is_shown_where_no_job_can_be(browsed: Path, desk: Desk, tmp_path: Path) -> None:
    assert ".pushed" not in os.listdir(browsed)
    assert not (browsed / ".pushed").exists()
    (tmp_path / "model.bin").write_bytes(b"weights")
    assert desk.cli("checkpoint", "push", "base", "--file", str(tmp_path / "model.bin")).returncode == 0
    assert sorted(os.listdir(browsed)) == [".pushed", "one", "two"]
    assert (browsed / ".pushed/by-name/base@1/model.bin").read_bytes() == b"weights"
    (found,) = desk.committed("")
    assert os.listdir(browsed / ".pushed/by-id" / found.id) == ["model.bin"]
    assert not (browsed / "one/by-id" / found.id).exists()
    copied = desk.cli("checkpoint", "push", "again", "--file", str(browsed / "two/by-name/step_1@1"))
    assert copied.returncode == 0, copied.stderr
    assert sorted(os.listdir(browsed / ".pushed/by-name")) == ["again@1", "base@1"]
    assert desk.cli("checkpoint", "delete", "base", "again", "--yes").returncode == 0
    assert ".pushed" not in os.listdir(browsed)


def test_it_can_be_walked_whole_and_what_is_listed_is_there(browsed: Path) -> None:
    files = [Path(top, name) for top, _, names in os.walk(browsed) for name in names]
    assert {"a.bin", "m.bin", "n.bin"} <= {path.name for path in files}
    for path in files:
        assert path.stat().st_size == len(path.read_bytes())
    assert all(path.is_symlink() == (path.name == "latest") for path in files) or "latest" not in os.listdir(browsed)


def test_nothing_can_be_written_anywhere(browsed: Path, desk: Desk) -> None:
    (found,) = desk.committed("one")
    directory = browsed / "one" / "by-id" / found.id
    file = directory / "a.bin"
    attempts: list[Callable[[], object]] = [
        lambda: file.open("r+b"),
        lambda: os.truncate(file, 0),
        file.unlink,
        lambda: file.rename(directory / "b.bin"),
        lambda: file.chmod(0o644),
        lambda: os.utime(file),
        lambda: os.link(file, directory / "b.bin"),
        *(
            attempt
            for top in (browsed, browsed / "one", browsed / "one" / "by-id", directory)
            for attempt in ((top / "new").touch, (top / "new").mkdir, lambda top=top: (top / "new").symlink_to("x"))
        ),
        (browsed / "one").rmdir,
        lambda: (browsed / "one").rename(browsed / "three"),
    ]
    before = listing(browsed)
    for attempt in attempts:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            attempt()
        assert caught.value.errno == errno.EROFS
    assert listing(browsed) == before


def test_it_is_live(browsed: Path, desk: Desk) -> None:
    """A commit shows at once, with no remount."""
    save(desk, "three", "c.bin")
    assert sorted(os.listdir(browsed)) == ["one", "three", "two"]
    assert (browsed / "three" / "by-name" / "c.bin@1" / "c.bin").read_bytes() == b"c.bin" * 1000
    again = save(desk, "one", "d.bin")[-1]
    assert (browsed / "one" / "by-id" / again.id / "d.bin").exists()
    assert desk.cli("checkpoint", "delete", again.id, "--yes").returncode == 0
    assert again.id not in os.listdir(browsed / "one" / "by-id")
    assert not (browsed / "one" / "by-id" / again.id).exists()


def test_a_file_that_is_being_read_stays_whole_though_its_checkpoint_is_deleted(browsed: Path, desk: Desk) -> None:
    (found,) = desk.committed("one")
    with open(browsed / "one" / "by-id" / found.id / "a.bin", "rb", buffering=0) as file:
        start = file.read(10)
        assert desk.cli("checkpoint", "delete", found.id, "--yes").returncode == 0
        assert start + file.read() == b"a.bin" * 1000


def test_a_job_is_browsed_while_it_trains(browsed: Path, desk: Desk) -> None:
    write = python("(out / 'live.bin').write_bytes(b'live'); print('saved'); sys.stdin.readline()")
    started = desk.start("training", command=write)
    started.wait_line("saved")
    (found,) = desk.wait_for("training", 1)
    assert (browsed / "training" / "by-id" / found.id / "live.bin").read_bytes() == b"live"
    started.tell()
    assert started.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_it_is_for_the_owner_of_the_store_alone(browsed: Path, desk: Desk) -> None:
    """Not for another user, nor for one of the owner's group."""
    place = Path(tempfile.mkdtemp(prefix="fuse-ckpt-test-", dir="/tmp"))
    place.chmod(0o755)

    def look(groups: str) -> subprocess.CompletedProcess[str]:
        line = ["setpriv", "--reuid=65534", "--regid=65534", groups, "--inh-caps=-all", "ls", str(place)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    try:
        assert look("--clear-groups").returncode == 0, "before it is mounted"
        assert desk.cli("browse", str(place)).returncode == 0
        for groups in ("--clear-groups", "--groups=0"):
            said = look(groups)
            assert (said.returncode != 0, said.stdout) == (True, "")
            assert "Permission denied" in said.stderr
        assert desk.cli("umount", str(place)).returncode == 0
    finally:
        detach(place)
        place.rmdir()


def test_a_jobs_own_mount_does_not_show_other_jobs(browsed: Path, desk: Desk, tmp_path: Path) -> None:
    """One job's mount shows its own checkpoints and its input, not other jobs'."""
    (given,) = desk.committed("two")
    (hidden,) = desk.committed("one")
    place = tmp_path / "three"
    place.mkdir()
    assert desk.cli("mount", "three", str(place), "--input", given.id).returncode == 0
    try:
        assert sorted(os.listdir(place / ".checkpoints" / "by-id" / given.id)) == ["m.bin", "n.bin"]
        assert not (place / ".checkpoints" / "by-id" / hidden.id).exists()
        assert not (place / ".checkpoints" / "one").exists()
    finally:
        assert desk.cli("umount", str(place)).returncode == 0


def test_what_is_in_use_is_not_unmounted_and_goes_when_it_is_not(browsed: Path, desk: Desk) -> None:
    (found,) = desk.committed("one")
    with open(browsed / "one" / "by-id" / found.id / "a.bin", "rb") as file:
        said = desk.cli("umount", str(browsed))
        assert (said.returncode, one_line(said.stderr)) == (5, True), said.stderr
        assert len(file.read()) == 5000
    assert desk.cli("umount", str(browsed)).returncode == 0
    wait_until("the daemon has gone", lambda: not desk.processes())


def test_two_may_browse_at_once_and_a_mount_point_stays_one(browsed: Path, desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert desk.cli("browse", str(other)).returncode == 0
    assert sorted(os.listdir(other)) == sorted(os.listdir(browsed))
    again = desk.cli("browse", str(other))
    assert (again.returncode, one_line(again.stderr)) == (2, True), again.stderr
    assert desk.cli("umount", str(other)).returncode == 0
    assert (browsed / "one").exists()


def test_where_there_is_no_store_there_is_nothing_to_browse(desk: Desk, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    said = desk.cli("browse", str(place))
    assert (said.returncode, one_line(said.stderr)) == (1, True), said.stderr
    assert "no store" in said.stderr
    assert not desk.store.exists()
