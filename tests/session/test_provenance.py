from __future__ import annotations

import getpass
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuse_ckpt.model import Provenance
from fuse_ckpt.session import provenance
from fuse_ckpt.session.provenance import Sources, revision, versions


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", *arguments],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(provenance, "GIT_PATIENCE", 60.0)  # git may not get a processor for a second
    top = tmp_path / "repository"
    (top / "src").mkdir(parents=True)
    git(top, "init", "-q")
    (top / "src/train.py").write_text("print(1)\n")
    git(top, "add", ".")
    git(top, "commit", "-qm", "first")
    return top


def told(directory: Path, program: str = "/nonexistent/x") -> Provenance:
    with Sources(directory) as sources:
        return sources.provenance(program)


def test_a_run_is_told_with_its_host_user_and_revision(repository: Path) -> None:
    found = told(repository / "src", sys.executable)
    assert (found.host, found.directory) == (platform.node(), str(repository / "src"))
    assert found.user == getpass.getuser()
    assert found.revision == git(repository, "rev-parse", "HEAD")
    assert found.dirty is False
    assert found.versions["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "fuse-ckpt" in found.versions


def test_a_modified_file_is_told_and_an_untracked_one_is_not(repository: Path) -> None:
    (repository / "notes.txt").write_text("mine")
    assert told(repository).dirty is False
    (repository / "src/train.py").write_text("print(2)\n")
    assert told(repository / "src").dirty is True


def test_asking_git_changes_nothing(repository: Path) -> None:
    index = repository / ".git/index"
    os.utime(repository / "src/train.py", (1, 1))  # a plain `git status` would refresh the index now
    before = (index.read_bytes(), index.stat().st_mtime_ns)
    assert told(repository).dirty is False
    assert (index.read_bytes(), index.stat().st_mtime_ns) == before


def detached(top: Path) -> Path:
    git(top, "checkout", "-q", "--detach")
    return top


def packed(top: Path) -> Path:
    git(top, "pack-refs", "--all")
    assert not (top / ".git/refs/heads/main").exists()
    return top


def worktree(top: Path) -> Path:
    git(top, "worktree", "add", "-q", "-b", "feature/x", str(top.parent / "worktree"))
    return top.parent / "worktree"


def packed_worktree(top: Path) -> Path:
    other = worktree(top)
    git(top, "pack-refs", "--all")
    return other


@pytest.mark.parametrize("make", [detached, packed, worktree, packed_worktree])
def test_the_revision_is_read_as_git_would(repository: Path, make: object) -> None:
    place: Path = make(repository)  # type: ignore[operator]
    assert revision(place) == git(place, "rev-parse", "HEAD")


def test_a_repository_without_a_commit_has_no_revision(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert told(tmp_path).revision is None


@pytest.mark.parametrize("head", [b"", b"garbage", b"ref: ../../../etc/passwd", b"\xff" * 50])
def test_a_broken_repository_is_no_error(repository: Path, head: bytes) -> None:
    (repository / ".git/HEAD").write_bytes(head)
    found = told(repository)
    assert (found.revision, found.dirty, found.directory) == (None, None, str(repository))


def test_a_directory_without_a_repository_says_nothing_of_one(tmp_path: Path) -> None:
    found = told(tmp_path)
    assert (found.revision, found.dirty) == (None, None)


def test_without_git_the_revision_is_still_told(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("PATH", str(repository))
    found = told(repository)
    assert (found.revision, found.dirty) == (head, None)


def test_a_git_that_hangs_holds_nothing_up(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin/git"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 100\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_PATIENCE", 0.3)
    began = time.monotonic()
    found = told(repository)
    assert time.monotonic() - began < 10
    assert (found.dirty, found.revision is None) == (None, False)


def test_a_working_directory_that_is_gone_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "gone"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    with Sources.here() as sources:
        found = sources.provenance(sys.executable)
    assert (found.directory, found.revision, found.dirty) == (None, None, None)
    assert found.host is not None


def test_versions_are_those_beside_the_program_and_nothing_is_run(tmp_path: Path) -> None:
    packages = tmp_path / "lib/python3.12/site-packages"
    for name in ("torch-2.13.0+cpu", "sentence_transformers-6.2", "unknown-1.0", "broken"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    program = tmp_path / "bin/torchrun"
    assert set(versions(program)) == {"fuse-ckpt"}
    (tmp_path / "pyvenv.cfg").touch()
    found = versions(program)
    found.pop("fuse-ckpt")
    assert found == {"python": "3.12", "torch": "2.13.0+cpu", "sentence_transformers": "6.2"}
