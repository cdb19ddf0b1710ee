"""How a process died, asked when its parent may have waited for it already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from fuse_ckpt.staging.processes import open_process, wait_exit

AFTER_REAPING = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 15)  # PIDFD_INFO_EXIT

ENDS = {
    "": None,
    "sys.exit(3)": "its writer exited with status 3",
    "os.kill(os.getpid(), 9)": "its writer was killed by signal 9",
}


@pytest.fixture(params=ENDS)
def ending(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[bytes], str | None]]:
    """A process that ends, in one way or another, once its input does; and what is to be said of that."""
    code = f"import os, sys; sys.stdin.read(); {request.param}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        yield process, ENDS[request.param]


def end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


async def waited_for(process: int, pidfd: int | None) -> str | None:
    with trio.fail_after(30):
        return await wait_exit(process, pidfd)


def test_the_death_of_a_process_that_nobody_has_waited_for_is_known(
    ending: tuple[subprocess.Popen[bytes], str | None],
) -> None:
    process, death = ending
    end(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert trio.run(waited_for, process.pid, None) == death


@pytest.mark.skipif(not AFTER_REAPING, reason="the kernel forgets a death with its process (before Linux 6.15)")
def test_the_death_of_a_process_that_its_parent_has_waited_for_is_known(
    ending: tuple[subprocess.Popen[bytes], str | None],
) -> None:
    process, death = ending
    pidfd = open_process(process.pid)
    end(process)
    process.wait()
    assert trio.run(waited_for, process.pid, pidfd) == death


def test_of_a_process_that_was_gone_before_nothing_is_known() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert open_process(process.pid) is None
    assert trio.run(waited_for, process.pid, None) is None
