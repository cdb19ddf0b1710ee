"""The read view: committed checkpoints as read-only directories."""

from __future__ import annotations

import json
import mmap
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scripts.mountpoints import is_mounted
from tests.conftest import MountJob, mounting
from tests.mount.harness import Daemon, Mount, detach, sha256, wait_until
from tests.semantics.parity import opened, outcome, put

pytestmark = pytest.mark.mount
ROOT = os.getuid() == 0


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A job with a flat, a nested, a DeepSpeed-like and a root checkpoint."""
    with mounting(tmp_path_factory.mktemp("view")) as make:
        mounted = make()
        d = mounted.path
        torch.save({"w": torch.arange(10)}, d / "flat.pt")
        save_file({"w": torch.arange(10)}, d / "flat.safetensors")
        put(d / "model.safetensors.index.json", b'{"weight_map": {}}')
        put(d / "config.json", b"{}")
        (d / "checkpoints" / "step_5" / "sub").mkdir(parents=True)
        torch.save({"w": torch.arange(10)}, d / "checkpoints" / "step_5" / "model.pt")
        os.symlink("model.pt", d / "checkpoints" / "step_5" / "link.pt")
        os.chmod(put(d / "checkpoints" / "step_5" / "sub" / "extra.bin"), 0o700)
        (d / "global_step10").mkdir()
        torch.save({"w": torch.arange(10)}, d / "global_step10" / "rank0.pt")
        put(d / "latest", b"global_step10")
        mounted.umount()
        yield mounted.mount()


def only(mounted: Mount, name: str) -> Path:
    (found,) = mounted.committed(name)
    return mounted.by_id(found)


def test_the_view_is_found_by_name_and_never_listed(filled: Mount) -> None:
    """S18: `.checkpoints` in the mount's root is found by name, never listed."""
    assert ".checkpoints" not in os.listdir(filled.path)
    assert sorted(os.listdir(filled.view)) == ["by-id", "by-name", "latest", "layout"]
    assert outcome(os.stat, filled.path / "global_step10" / ".checkpoints") == "ENOENT"


def test_by_id_holds_the_files_at_its_root(filled: Mount) -> None:
    """S18: `by-id/<id>/` holds the checkpoint's files at its root; `by-id/<id>.json` tells everything."""
    found = filled.committed()
    assert sorted(os.listdir(filled.view / "by-id")) == sorted(
        [one.id for one in found] + [f"{one.id}.json" for one in found]
    )
    assert sorted(os.listdir(only(filled, ""))) == ["config.json", "model.safetensors.index.json"]
    assert sorted(os.listdir(only(filled, "checkpoints/step_5"))) == ["link.pt", "model.pt", "sub"]
    assert os.listdir(only(filled, "flat.pt")) == ["flat.pt"]
    for one in found:
        told = json.loads((filled.view / "by-id" / f"{one.id}.json").read_text())
        assert (told["checkpoint"]["id"], told["checkpoint"]["name"]) == (one.id, one.name)
        assert len([entry for entry in told["entries"] if entry["kind"] == "file"]) == one.files


def test_by_name_has_nested_names_as_nested_directories(filled: Mount) -> None:
    """S18: `by-name/<name>@<n>/` (nested names as nested directories; the root checkpoint is `@<n>`); `latest`."""
    by_name = filled.view / "by-name"
    assert sorted(os.listdir(by_name)) == ["@1", "checkpoints", "flat.pt@1", "flat.safetensors@1", "global_step10@1"]
    assert os.listdir(by_name / "checkpoints") == ["step_5@1"]
    assert sha256(by_name / "checkpoints" / "step_5@1" / "model.pt") == sha256(
        filled.path / "checkpoints/step_5/model.pt"
    )
    assert sorted(os.listdir(by_name / "@1")) == ["config.json", "model.safetensors.index.json"]
    latest = filled.view / "latest"
    assert latest.is_symlink()
    assert latest.resolve().parent == filled.view / "by-id"
    assert outcome(os.stat, by_name / "flat.pt@2") == "ENOENT"


def test_layout_shows_the_files_under_their_path_with_companions(filled: Mount) -> None:
    """S18: `layout/<id>/` shows the files under their path in the output directory with their companions and symlinks
    (DeepSpeed wants `latest` beside `global_step10/`)."""
    layout = filled.view / "layout"
    assert sorted(os.listdir(layout)) == sorted(one.id for one in filled.committed())
    deepspeed = layout / only(filled, "global_step10").name
    assert sorted(os.listdir(deepspeed)) == ["global_step10", "latest"]
    assert (deepspeed / (deepspeed / "latest").read_text() / "rank0.pt").is_file()
    nested = layout / only(filled, "checkpoints/step_5").name
    assert (nested / "checkpoints" / "step_5" / "sub" / "extra.bin").read_bytes() == b"0123456789"


WRITES: dict[str, Callable[[Path], Any]] = {
    "open to write": lambda d: os.open(d / "model.pt", os.O_WRONLY),
    "open to read and write": lambda d: os.open(d / "model.pt", os.O_RDWR),
    "append": lambda d: os.open(d / "model.pt", os.O_WRONLY | os.O_APPEND),
    "truncate at open": lambda d: os.open(d / "model.pt", os.O_RDONLY | os.O_TRUNC),
    "create": lambda d: os.open(d / "new", os.O_CREAT | os.O_WRONLY),
    "truncate": lambda d: os.truncate(d / "model.pt", 0),
    "mkdir": lambda d: os.mkdir(d / "new"),
    "mkfifo": lambda d: os.mkfifo(d / "new"),
    "rmdir": lambda d: os.rmdir(d / "sub"),
    "unlink": lambda d: os.unlink(d / "model.pt"),
    "rename": lambda d: os.rename(d / "model.pt", d / "new"),
    "rename over": lambda d: os.rename(d / "link.pt", d / "model.pt"),
    "symlink": lambda d: os.symlink("x", d / "new"),
    "link": lambda d: os.link(d / "model.pt", d / "new"),
    "chmod": lambda d: os.chmod(d / "model.pt", 0o777),
    "chmod the directory": lambda d: os.chmod(d, 0o777),
    "chown": lambda d: os.chown(d / "model.pt", 1, 1),
    "utime": lambda d: os.utime(d / "model.pt"),
    "setxattr": lambda d: os.setxattr(d / "model.pt", "user.a", b"1"),
    "removexattr": lambda d: os.removexattr(d / "model.pt", "user.a"),
}


@pytest.mark.parametrize("name", WRITES)
def test_every_writing_call_says_erofs(filled: Mount, name: str) -> None:
    """S19: Read-only for everyone: every writing call says EROFS (EACCES where the mode alone forbids it)."""
    d = only(filled, "checkpoints/step_5")
    before = sha256(d / "model.pt")
    allowed = {"EROFS"} if ROOT else {"EROFS", "EACCES"}
    assert outcome(WRITES[name], d) in allowed
    assert sha256(d / "model.pt") == before


def test_the_view_s_own_directories_are_read_only_too(filled: Mount) -> None:
    """S19: Read-only for everyone: every writing call says EROFS."""
    for place in (filled.view, filled.view / "by-id", filled.view / "by-name", filled.view / "layout"):
        assert outcome(os.mkdir, place / "new") in ({"EROFS"} if ROOT else {"EROFS", "EACCES"})
    assert outcome(os.rmdir, filled.view / "by-id") in ("EROFS", "EACCES")
    inside = put(filled.path / "inside.log")
    assert outcome(os.rename, inside, filled.view / "by-id" / "new") in ("EROFS", "EACCES", "EXDEV")
    assert outcome(os.rename, only(filled, "flat.pt") / "flat.pt", filled.path / "out.log") in (
        "EROFS",
        "EACCES",
        "EXDEV",
    )
    inside.unlink()


def test_modes_owners_times_sizes_and_bytes_are_the_original_ones(filled: Mount) -> None:
    """S19: Directories are 0555, files `(mode | 0444) & ~0222`, owned by the mount's owner. Bytes equal what was
    written, by digest; mmap works; sizes, mtimes and symlinks are the original ones, modes too, but readable
    (safetensors leaves 0600)."""
    work, view = filled.path / "checkpoints" / "step_5", only(filled, "checkpoints/step_5")
    for path in ("model.pt", "sub/extra.bin"):
        was, seen = (work / path).stat(), (view / path).stat()
        assert (seen.st_size, seen.st_mtime_ns) == (was.st_size, was.st_mtime_ns)
        assert stat.S_IMODE(seen.st_mode) == (stat.S_IMODE(was.st_mode) | 0o444) & ~0o222
        assert sha256(view / path) == sha256(work / path)
        assert (seen.st_uid, seen.st_gid) == (os.getuid(), os.getgid())
        assert not seen.st_mode & 0o222
    assert stat.S_IMODE((view / "sub" / "extra.bin").stat().st_mode) == 0o544
    assert [oct((view / path).stat().st_mode & 0o7777) for path in (".", "sub", "..")] == ["0o555"] * 3
    assert os.readlink(view / "link.pt") == "model.pt"
    assert os.lstat(view / "link.pt").st_mtime_ns == os.lstat(work / "link.pt").st_mtime_ns
    flat = only(filled, "flat.safetensors") / "flat.safetensors"
    assert flat.stat().st_mode & 0o777 == 0o444
    with opened(flat, os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == flat.read_bytes()
    assert load_file(flat)["w"].tolist() == list(range(10))
    assert torch.load(view / "link.pt", mmap=True)["w"].tolist() == list(range(10))


def test_a_commit_shows_at_once(mounted: Mount) -> None:
    """S20: It is live: a commit shows at once, with no remount."""
    by_name = mounted.view / "by-name"
    for number in range(1, 6):
        assert outcome(os.stat, by_name / f"ckpt.bin@{number}") == "ENOENT"
        put(mounted.path / "ckpt.bin", b"%d" % number)
        (*_, newest) = mounted.wait_for("ckpt.bin", number)
        assert (by_name / f"ckpt.bin@{number}" / "ckpt.bin").read_bytes() == b"%d" % number
        assert newest.id in os.listdir(mounted.view / "by-id")
        assert f"ckpt.bin@{number}" in os.listdir(by_name)


def test_a_directory_in_use_outlives_its_deletion(mounted: Mount) -> None:
    """S20: a directory in use stays whole as long as it is used: `delete` hides, only `collect` removes, and it
    leaves what is leased or held open."""
    d = mounted.path / "step_1"
    d.mkdir()
    for name in ("held.bin", "later.bin"):
        put(d / name)
    mounted.umount()
    mounted.mount()
    (found,) = mounted.committed("step_1")
    with (
        opened(mounted.by_id(found), os.O_RDONLY | os.O_DIRECTORY) as used,
        opened(mounted.by_id(found) / "held.bin", os.O_RDONLY) as held,
    ):
        said = mounted.cli("checkpoint", "delete", found.id, "--yes")
        assert said.returncode == 0, said.stderr
        wait_until("hidden", lambda: outcome(os.stat, mounted.by_id(found)) == "ENOENT")
        assert found.id not in os.listdir(mounted.view / "by-id")
        assert os.pread(held, 20, 0) == b"0123456789"
        assert sorted(os.listdir(used)) == ["held.bin", "later.bin"]
        later = os.open("later.bin", os.O_RDONLY, dir_fd=used)
        assert os.read(later, 20) == b"0123456789"
        os.close(later)


@pytest.mark.skipif(not ROOT, reason="only root may bind")
def test_a_bound_directory_outlives_the_mount_s_own_place(mounted: Mount, tmp_path: Path) -> None:
    """S21: A directory of it can be bind-mounted anywhere, and outlives the training process (its daemon serves it as
    long as something is bound; `umount` then says "still bound", exit 5)."""
    torch.save({"w": torch.arange(10)}, mounted.path / "ckpt.pt")
    (found,) = mounted.wait_for("ckpt.pt")
    target = tmp_path / "input-checkpoint"
    target.mkdir()
    subprocess.run(["mount", "--bind", mounted.by_id(found), target], check=True)
    daemon = mounted.daemon
    assert daemon is not None
    try:
        said = mounted.cli("umount", str(mounted.path))
        assert (said.returncode, "still bound" in said.stderr, said.stderr.count("\n")) == (5, True, 1)
        assert torch.load(target / "ckpt.pt", mmap=True)["w"].tolist() == list(range(10))
        assert outcome(os.open, target / "new", os.O_CREAT | os.O_WRONLY) == "EROFS"
        assert daemon.process.poll() is None
    finally:
        subprocess.run(["umount", target], check=True)
    assert daemon.wait() == 0
    assert not is_mounted(mounted.path)
    mounted.daemon = None


@pytest.mark.skipif(not ROOT, reason="only root may unshare")
def test_a_directory_is_bound_in_another_mount_namespace(mounted: Mount, tmp_path: Path) -> None:
    """S21: A directory of it can be bind-mounted anywhere, also into another mount namespace."""
    put(mounted.path / "ckpt.bin")
    (found,) = mounted.wait_for("ckpt.bin")
    target = tmp_path / "input"
    target.mkdir()
    script = 'mount --bind -o ro "$0" "$1" && cat "$1/ckpt.bin" && touch "$1/new" 2>&1; umount "$1"'
    run = ["unshare", "-m", "sh", "-c", script, str(mounted.by_id(found)), str(target)]
    said = subprocess.run(run, capture_output=True, text=True, check=False).stdout
    assert said.startswith("0123456789")
    assert "Read-only file system" in said
    assert os.listdir(target) == []


def test_a_mount_shows_its_own_job_alone_and_browse_shows_all(mount_job: MountJob, tmp_path: Path) -> None:
    """S22: One job's mount shows its own checkpoints and its input, not other jobs'. `browse` shows all, to the owner
    of the store."""
    one = mount_job("one")
    put(one.path / "one.bin", b"one")
    (first,) = one.wait_for("one.bin")
    two = mount_job("two", "--input", first.id)
    three = mount_job("three")
    put(two.path / "two.bin", b"two")
    (second,) = two.wait_for("two.bin")
    assert (two.by_id(first) / "one.bin").read_bytes() == b"one"
    for mounted, hidden in ((one, second), (three, first), (three, second)):
        assert outcome(os.stat, mounted.by_id(hidden)) == "ENOENT"
        assert hidden.id not in os.listdir(mounted.view / "by-id")
    assert not os.path.lexists(three.view / "latest")
    place = tmp_path / "all"
    place.mkdir()
    daemon = Daemon(["--store", str(one.store), "browse", "--foreground", str(place)], place, tmp_path / "browse.log")
    try:
        assert sorted(os.listdir(place)) == ["one", "three", "two"]
        assert (place / "two" / "by-id" / second.id / "two.bin").read_bytes() == b"two"
        assert (place / "one" / "by-name" / "one.bin@1" / "one.bin").read_bytes() == b"one"
        assert outcome(os.mkdir, place / "new") == "EROFS"
        put(three.path / "three.bin", b"three")
        (third,) = three.wait_for("three.bin")
        assert (place / "three" / "by-id" / third.id / "three.bin").read_bytes() == b"three"
        assert stat.S_IMODE(one.store.stat().st_mode) == 0o700
        assert one.cli("umount", str(place)).returncode == 0
        assert daemon.wait() == 0
    finally:
        detach(place)
        daemon.kill()
