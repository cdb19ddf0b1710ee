"""Who closed a file: its program, or only its program's death. The kernel's close looks the same in both cases."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.conftest import MountJob
from tests.mount.harness import PROGRAM, Mount, wait_until
from tests.semantics.parity import put
from tests.staging.test_processes import AFTER_REAPING

pytestmark = pytest.mark.mount

_PRELUDE = """
import os, signal, sys
from pathlib import Path
path = sys.argv[1]
def start():
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"half")
    return fd
def finish(fd):
    os.write(fd, b" whole")
    os.close(fd)
"""

TORN = {
    "SIGKILL": "start(); os.kill(os.getpid(), 9)",
    "SIGTERM": "start(); os.kill(os.getpid(), 15)",
    "SIGABRT": "start(); os.abort()",
    "exit at once with 1": "start(); os._exit(1)",
    "exit with a descriptor left open and 3": "start(); sys.exit(3)",
    "killed at the second of its files": """
        whole = os.open(path + ".log", os.O_CREAT | os.O_WRONLY)
        os.close(whole)
        start()
        os.kill(os.getpid(), 9)""",
    "killed in a thread": """
        import threading
        thread = threading.Thread(target=lambda: (start(), os.kill(os.getpid(), 9)))
        thread.start()
        thread.join()""",
    "killed when another program had closed its copy": """
        import subprocess
        fd = start()
        os.set_inheritable(fd, True)
        subprocess.run(["true"], close_fds=False)
        os.kill(os.getpid(), 9)""",
    "a worker that dies with a file of its own": """
        if os.fork() == 0:
            start()
            os.kill(os.getpid(), 9)
        os.wait()""",
}

WHOLE = {
    "close": "finish(start())",
    "normal exit with a file object": "f = open(path, 'wb'); f.write(b'half whole')",
    "exit with a descriptor left open and 0": "fd = start(); os.write(fd, b' whole'); sys.exit(0)",
    "exit at once with 0": "fd = start(); os.write(fd, b' whole'); os._exit(0)",
    "closed, then killed": "finish(start()); os.kill(os.getpid(), 9)",
    "closed, then exit with 1": "finish(start()); os._exit(1)",
    "an exception that unwinds": """
        with open(path, "wb", 0) as f:
            f.write(b"half whole")
            raise SystemExit(4)""",
    "a worker that dies while its parent goes on": """
        fd = start()
        if os.fork() == 0:
            os.kill(os.getpid(), 9)
        os.wait()
        finish(fd)""",
    "a worker that writes, and dies while its parent goes on": """
        fd = start()
        if os.fork() == 0:
            os.write(fd, b" whole")
            os._exit(1)
        os.wait()
        os.close(fd)""",
    "a second writer of the same file that closes it": """
        if os.fork() == 0:
            start()
            os.kill(os.getpid(), 9)
        os.wait()
        finish(start())""",
    "closed in another thread": """
        import threading
        fd = start()
        thread = threading.Thread(target=finish, args=(fd,))
        thread.start()
        thread.join()""",
    "redirected by a shell": "os.execlp('sh', 'sh', '-c', 'printf half >\"$0\"; printf \" whole\" >>\"$0\"', path)",
    "left open by a shell": "os.execlp('sh', 'sh', '-c', 'exec >\"$0\"; printf \"half whole\"', path)",
    "opened before exec and left open": """
        fd = start()
        os.set_inheritable(fd, True)
        os.execlp("sh", "sh", "-c", f"printf ' whole' >&{fd}")""",
}


ORPHANED = """
    go, tell = os.pipe()
    ended, hold = os.pipe()
    opener = os.fork()
    if opener == 0:
        fd = start()
        if os.fork() == 0:
            os.read(go, 1)
            finish(fd)
            os._exit(0)
        os.close(fd)
        os.kill(os.getpid(), 9)
    os.close(hold)
    os.waitid(os.P_PID, opener, os.WEXITED | os.WNOWAIT)  # dead, and how it died can still be seen
    os.write(tell, b"1")
    os.read(ended, 1)"""


def execute(mounted: Mount, code: str) -> None:
    program = _PRELUDE + textwrap.dedent(code)
    subprocess.run([sys.executable, "-S", "-c", program, mounted.path / "raw.bin"], check=False, stderr=subprocess.PIPE)


def test_a_file_that_only_its_writers_death_closed_is_failed(mount_job: MountJob) -> None:
    """S12: of raw bytes nothing else could tell."""
    for number, (end, code) in enumerate(TORN.items()):
        mounted = mount_job(f"job{number}")
        mounted.expect_log("raw.bin")
        execute(mounted, code)
        (found,) = mounted.wait_for("raw.bin", status="failed")
        assert "raw.bin was not closed by its program" in (found.failure or ""), end
        assert mounted.committed("raw.bin") == [], end
        mounted.umount()


def test_a_file_that_its_program_closed_or_left_at_its_good_end_is_available(mount_job: MountJob) -> None:
    """S12, its limits."""
    for number, (end, code) in enumerate(WHOLE.items()):
        mounted = mount_job(f"job{number}")
        if "second writer" in end:
            mounted.allow_log("raw.bin")  # of the first, which may have been committed before the second came
        execute(mounted, code)
        mounted.commit()  # what was closed in between may be a checkpoint, too
        assert (mounted.by_id(mounted.committed("raw.bin")[-1]) / "raw.bin").read_bytes() == b"half whole", end
        mounted.umount()


def test_the_later_death_of_who_opened_and_closed_it_is_no_fault_of_what_its_worker_finishes(
    passthrough: Mount,
) -> None:
    execute(passthrough, ORPHANED)
    (found,) = passthrough.wait_for("raw.bin")
    assert (passthrough.by_id(found) / "raw.bin").read_bytes() == b"half whole"


@pytest.mark.skipif(not AFTER_REAPING, reason="the kernel forgets a death with its process (before Linux 6.15)")
def test_a_rank_that_is_killed_between_two_files_is_noticed_however_soon_its_parent_waits_for_it(
    mounted: Mount,
) -> None:
    """S12: Better a whole checkpoint called failed than a torn one called available."""
    saves = 10
    code = f"""
    for number in range({saves}):
        directory = f"{{path}}-{{number}}"
        os.mkdir(directory)
        if os.fork() == 0:
            for name in "ab":
                Path(directory, name).write_bytes(b"whole")
            os.kill(os.getpid(), 9)
        os.wait()
    """
    mounted.expect_log("is not whole")
    program = _PRELUDE + textwrap.dedent(code)
    subprocess.run([sys.executable, "-c", program, str(mounted.path / "checkpoint")], check=True)
    for number in range(saves):
        (one,) = mounted.wait_for(f"checkpoint-{number}", status="failed")
        assert one.failure == "its writer was killed by signal 9 before it was seen to be finished"
    assert mounted.committed() == []


def test_the_death_of_a_parent_leaves_what_its_worker_still_writes_torn(mounted: Mount) -> None:
    code = """
        fd = start()
        if os.fork() == 0:
            signal.pause()
        print("ready", flush=True)
        signal.pause()"""
    program = _PRELUDE + textwrap.dedent(code)
    mounted.expect_log("raw.bin")
    line = [sys.executable, "-S", "-c", program, str(mounted.path / "raw.bin")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        with open(f"/proc/{parent.pid}/task/{parent.pid}/children") as children:
            worker = int(children.read())
        parent.kill()
    put(mounted.path / "after.bin")
    mounted.wait_for("after.bin")
    assert mounted.committed("raw.bin") == mounted.committed("raw.bin", "failed") == [], "it can still be written"
    subprocess.run(["kill", str(worker)], check=True)
    mounted.wait_for("raw.bin", status="failed")


def test_of_a_writer_that_cannot_be_seen_the_content_decides(mount_job: MountJob) -> None:
    """The daemon is in a pid namespace of its own: the kernel tells it pid 0."""
    mounted = mount_job(ready=False).mount(program=("unshare", "--pid", "--fork", "--kill-child", *PROGRAM))
    execute(mounted, TORN["SIGKILL"])
    mounted.wait_for("raw.bin")
    torn = 'f = os.open(path[:-3] + "pt", os.O_CREAT | os.O_WRONLY); os.write(f, b"PK\\3\\4"); os.kill(os.getpid(), 9)'
    execute(mounted, torn)
    mounted.expect_log("raw.pt")
    mounted.umount()
    wait_until("the torn one is failed", lambda: mounted.committed("raw.pt", "failed"))
    assert mounted.committed("raw.pt") == []
