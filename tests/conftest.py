"""Fixtures for tests on real mounts and with a real object store, wherever they lie."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.mount.harness import Mount, can_mount
from tests.transfer.seaweed import Seaweed, running

_why_not = cache(can_mount)


class MountJob(Protocol):
    """Mount a job: `store` None is the test's own, which all its jobs share."""

    def __call__(self, job: str = "job", *options: str, store: Path | None = None, ready: bool = True) -> Mount: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    choices = ["auto", "passthrough", "daemon"]
    parser.addoption("--data-path", choices=choices, default="auto", help="who moves the data in every mount")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["FUSE_CKPT_DATA_PATH"] = config.getoption("--data-path")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as `&` in a script does; every child would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Under CI, a test that needs root and has it not is no green one."""
    outcome: Any = yield
    report = outcome.get_result()
    if (
        os.environ.get("CI")
        and report.skipped
        and not hasattr(report, "wasxfail")
        and "root" in str(report.longrepr[2])
    ):
        report.outcome, report.longrepr = "failed", f"under CI this may not be skipped: {report.longrepr[2]}"


@contextmanager
def mounting(directory: Path) -> Iterator[MountJob]:
    """A function that mounts jobs below `directory`; at the end each mount is taken down and looked at."""
    reason = _why_not()
    if reason is not None:
        if os.environ.get("CI"):
            pytest.fail(f"nothing can be mounted here:\n{reason}")
        pytest.skip(f"nothing can be mounted here: {reason}")
    mounts: list[Mount] = []

    def make(job: str = "job", *options: str, store: Path | None = None, ready: bool = True) -> Mount:
        place = directory / f"mnt{len(mounts)}"
        place.mkdir()
        mounted = Mount(store or directory / "store", place, job, options, directory / f"daemon{len(mounts)}.log")
        mounts.append(mounted)
        return mounted.mount() if ready else mounted

    problems: list[str] = []
    try:
        yield make
    finally:
        for mounted in reversed(mounts):
            problems += mounted.close()
    assert problems == []


@pytest.fixture
def mount_job(tmp_path: Path) -> Iterator[MountJob]:
    """A function that mounts a job in a child process; at the end of the test each mount is taken down and looked
    at."""
    with mounting(tmp_path) as make:
        yield make


@pytest.fixture
def mounted(mount_job: MountJob) -> Mount:
    """A job that is mounted with the defaults."""
    return mount_job()


@pytest.fixture
def data_path(mounted: Mount) -> str:
    """Who moves the data of `mounted`: "passthrough" (the kernel) or "daemon"."""
    return mounted.data_path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for all tests of a module: each keeps to a directory of its own."""
    with mounting(tmp_path_factory.mktemp("shared")) as make:
        yield make()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real object store, started when the first test asks for it."""
    with running(tmp_path_factory.mktemp("seaweed") / "server") as server:
        yield server
