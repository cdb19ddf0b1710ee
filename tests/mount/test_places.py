"""Copies never go into a mount of ours, where they would become checkpoints themselves; they may come from one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.runs import Desk, one_line

pytestmark = [pytest.mark.mount, pytest.mark.once]


@pytest.fixture
def mounted_job(seeded: Desk, place: Path) -> Path:
    assert seeded.cli("mount", "kept", str(place)).returncode == 0
    return place


def test_a_destination_inside_a_mount_is_refused(seeded: Desk, mounted_job: Path) -> None:
    try:
        inside = [mounted_job / "copy", mounted_job, mounted_job / ".checkpoints/by-id/x"]
        for destination in inside:
            said = seeded.cli("checkpoint", "fetch", "kept/a.bin", "--destination", str(destination), "--force")
            assert (said.returncode, one_line(said.stderr)) == (2, True), said.stderr
            assert "lies in a mount of fuse-ckpt: choose a --destination outside of it" in said.stderr
        said = seeded.cli("training", "fetch", "kept", "--destination", str(inside[0]))
        assert (said.returncode, one_line(said.stderr)) == (2, True), said.stderr
        create = ["storage", "create", "here", "--provider", "file", "--root", str(mounted_job)]
        assert seeded.cli(*create).returncode == 0
        to = ["--storage-provider", "here", "--destination-path", "copy"]
        said = seeded.cli("checkpoint", "export", "kept/a.bin", *to)
        assert (said.returncode, one_line(said.stderr)) == (2, True), said.stderr
        assert "lies in a mount of fuse-ckpt" in said.stderr
        assert sorted(os.listdir(mounted_job)) == ["a.bin", "b.bin"]
    finally:
        assert seeded.cli("umount", str(mounted_job)).returncode == 0
    assert len(seeded.listed("kept")) == 2


def test_a_mount_is_pushed_from_as_any_directory(seeded: Desk, mounted_job: Path) -> None:
    (first, _) = seeded.committed("kept")
    try:
        for source in (mounted_job / "a.bin", mounted_job / ".checkpoints/by-id" / first.id):
            assert seeded.cli("checkpoint", "push", "copy", "--file", str(source)).returncode == 0
    finally:
        assert seeded.cli("umount", str(mounted_job)).returncode == 0
    assert [(one.name, one.ordinal, one.size) for one in seeded.committed("")] == [("copy", 1, 1), ("copy", 2, 1)]
