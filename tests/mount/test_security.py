"""docs/security.md, on real mounts: who may enter, what is ours alone, and that no path leads out of the tree."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from fuse_ckpt.model import Entry, Kind, Metadata, NewCheckpoint, Shape, Unit
from fuse_ckpt.store import Store
from fuse_ckpt.store.tables import Table
from tests.conftest import MountJob
from tests.mount.harness import Mount, wait_until, walk_files
from tests.mount.runs import Desk, one_line, python
from tests.semantics.parity import put

pytestmark = pytest.mark.mount
NOBODY = 65534


def options_of(path: Path) -> set[str]:
    """The options of a mount, its own and its filesystem's."""
    with open("/proc/self/mountinfo") as lines:
        (line,) = (line.split() for line in lines if line.split()[4] == str(path))
    return {*line[5].split(","), *line[-1].split(",")}


def as_nobody(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "/usr/bin/env", "python3", "-c"]
    return subprocess.run([*command, code, *map(str, arguments)], capture_output=True, text=True, check=False, cwd="/")


@pytest.mark.once
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_store_is_its_owner_s_alone_whatever_the_umask(desk: Desk, umask: int) -> None:
    """Directories 0700, our own files 0600; a blob is the program's own inode and keeps its mode."""
    before = os.umask(umask)
    try:
        command = python(
            "(out / 'm.bin').write_bytes(b'w'); (out / 'step_1').mkdir(); (out / 'step_1/w.bin').write_bytes(b'v')"
        )
        done = desk.run("job", command=command)
        assert done.returncode == 0, done.stderr
        started = desk.start("job", "--restart", command=python("print('there'); sys.stdin.readline()"))
        started.wait_line("there")
        modes = {str(path.relative_to(desk.store)): path.lstat().st_mode for path in [desk.store, *below(desk.store)]}
        started.tell()
        assert started.wait() == 0
    finally:
        os.umask(before)
    assert "jobs/job/control" in modes
    for name, mode in modes.items():
        wanted = 0o700 if stat.S_ISDIR(mode) else 0o600
        assert stat.S_IMODE(mode) & 0o777 == wanted, name


def below(store: Path) -> list[Path]:
    """Everything of ours in a store: not what training made, and not what is mounted there."""
    theirs = ("work", "blobs", "output-checkpoint")
    found = []
    for directory, names, files in os.walk(store):
        names[:] = [name for name in names if name not in theirs or Path(directory).name in theirs]
        found += [Path(directory) / name for name in (*names, *files)]
    return found


def test_a_mount_gives_no_rights_to_what_lies_in_it(mount_job: MountJob) -> None:
    private, shared = mount_job("private"), mount_job("shared", "--allow-other")
    for mounted in (private, shared):
        assert {"nosuid", "nodev"} <= options_of(mounted.path)
    assert {"allow_other", "default_permissions"} <= options_of(shared.path)
    assert "allow_other" not in options_of(private.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_another_user_reads_and_writes_only_what_the_modes_say(mount_job: MountJob, tmp_path: Path) -> None:
    private, shared = mount_job("private"), mount_job("shared", "--allow-other")
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and len(parent.parts) > 2:
            parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o711)
    for mounted in (private, shared):
        put(mounted.path / "open.bin").chmod(0o644)
        put(mounted.path / "shut.bin").chmod(0o600)
        mounted.wait_for("shut.bin")
    assert as_nobody("import os,sys; os.listdir(sys.argv[1])", private.path).returncode != 0
    read = "import sys; sys.stdout.write(open(sys.argv[1]).read())"
    assert as_nobody(read, shared.path / "open.bin").stdout == "0123456789"
    for code, path in (
        (read, shared.path / "shut.bin"),
        ("import sys; open(sys.argv[1], 'a')", shared.path / "open.bin"),
        ("import sys, os; os.unlink(sys.argv[1])", shared.path / "open.bin"),
        ("import sys; open(sys.argv[1], 'w')", shared.path / "new.bin"),
    ):
        said = as_nobody(code, path)
        assert "Permission denied" in said.stderr, said
    (shut,) = shared.committed("shut.bin")
    view = shared.by_id(shut) / "shut.bin"
    assert as_nobody(read, view).stdout == "0123456789", "whoever may enter reads checkpoints (S19)"
    assert as_nobody("import sys; open(sys.argv[1], 'a')", view).returncode != 0
    assert as_nobody("import os,sys; os.listdir(sys.argv[1])", shared.store).returncode != 0


SWAP = """
import os, sys, time
top, outside = sys.argv[1:]
end = time.monotonic() + 4
count = 0
while time.monotonic() < end:
    os.rename(f"{top}/step_1", f"{top}/aside")
    os.symlink(outside, f"{top}/step_1")
    os.unlink(f"{top}/step_1")
    os.rename(f"{top}/aside", f"{top}/step_1")
    count += 1
print(count)
"""


def test_a_directory_that_is_swapped_for_a_symlink_leads_nowhere(mounted: Mount, tmp_path: Path) -> None:
    """Behind the daemon's back too: whoever owns the store may do that, and must not be led out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    put(outside / "secret.bin", b"from outside" * 1000)
    (mounted.path / "step_1").mkdir()
    work = mounted.store / "jobs" / "job" / "work"
    mounted.allow_log(".")
    for top in (mounted.path, work):
        swapping = subprocess.Popen([sys.executable, "-c", SWAP, str(top), str(outside)], stdout=subprocess.PIPE)
        while swapping.poll() is None:
            for name in ("secret.bin", "mine.bin"):
                write_through(mounted, name)
            time.sleep(0.001)
        assert swapping.stdout is not None
        assert int(swapping.stdout.read()) > 10
        swapping.stdout.close()
    assert sorted(os.listdir(outside)) in (["secret.bin"], ["mine.bin", "secret.bin"])
    mounted.umount()
    for path in walk_files(mounted.store):
        assert b"from outside" not in path.read_bytes(), path


def write_through(mounted: Mount, name: str) -> None:
    """Open a file below the directory's own descriptor: through the mount, never through a symlink of the caller's."""
    try:
        directory = os.open(mounted.path / "step_1", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=directory)
        os.write(fd, b"mine")
        os.close(fd)
    except OSError:
        return
    finally:
        os.close(directory)


def read_all(directory: Path) -> None:
    for name in os.listdir(directory):
        (directory / name).read_bytes()


@pytest.mark.once
@pytest.mark.parametrize("entry", [
    Entry("../outside", Kind.FILE, 0o644, 1, 3, "a" * 64),
    Entry("a/../../outside", Kind.SYMLINK, 0o777, 1, target="x"),
    Entry("m.bin", Kind.FILE, 0o644, 1, 3, "../../../../etc/passwd"),
])  # fmt: skip
def test_a_record_of_a_foreign_store_leads_nowhere(mounted: Mount, tmp_path: Path, entry: Entry) -> None:
    with Store.open(mounted.store) as store:
        fine = NewCheckpoint("job", Unit("x", Shape.DIRECTORY), "0", 1, Metadata(), ())
        one = store.publish(fine)
        manifest = store.manifest(one.id)
        forged = msgspec.structs.replace(manifest, entries=(entry,))
        store.index.write(lambda records: records._put(Table.MANIFESTS, bytes.fromhex(one.id.replace("-", "")), forged))
    try:
        with pytest.raises(OSError, match="Input/output"):
            read_all(mounted.by_id(one))
        said = mounted.cli("checkpoint", "fetch", one.id, "--destination", str(tmp_path / "out" / "in"))
        assert (said.returncode, one_line(said.stderr)) in ((4, True), (1, True)), said.stderr
        assert not (tmp_path / "outside").exists()
        assert not (tmp_path / "out" / "outside").exists()
    finally:
        with Store.open(mounted.store) as store:
            store.delete([one.id])
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    wait_until("the view is empty", lambda: one.id not in os.listdir(mounted.view / "by-id"))
