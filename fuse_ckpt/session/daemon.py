"""The daemon as a process of its own: started here, told apart from its starter, heard once when it is ready.

`python -m fuse_ckpt.session FD` reads its options from standard input and writes one JSON line to descriptor FD: that
it is ready, or why it is not.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from fuse_ckpt import errors
from fuse_ckpt.errors import FuseCkptError, MountFailed
from fuse_ckpt.fuse import mount
from fuse_ckpt.session import replicating
from fuse_ckpt.session.options import Mounted, MountOptions
from fuse_ckpt.store import Store

END_PATIENCE = 60.0  # seconds for a daemon that has unmounted to end
LARGEST_LOG = 1 << 20  # bytes; a longer one is put aside as `.1` when a daemon starts


def start(store: Store, options: MountOptions) -> Mounted:
    """Start a daemon for a mount of `store` and return once it is ready. Raises what kept it from that."""
    prepare(store, options)
    log = _log_path(store, options)
    reading, writing = os.pipe()
    try:
        with open(log, "ab", opener=_private) as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "fuse_ckpt.session", str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[writing],
                start_new_session=True,  # a terminal's ^C is for the training
                cwd="/",
            )
    finally:
        os.close(writing)
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write(msgspec.json.encode(options, enc_hook=_as_text))
    with open(reading, "rb") as answers:
        line = answers.readline()
    process.returncode = 0  # it goes on without us: no warning that it was not waited for
    return _heard(line, log)


def prepare(store: Store, options: MountOptions) -> None:
    """Refuse what the daemon would refuse, before anything is made. Raises as `start` does."""
    mount.check_device()
    if options.mountpoint is not None:
        mount.check_mountpoint(options.mountpoint)
    replicating.check(store, options)
    if options.job is not None:
        store.lock_job(options.job).close()


def _log_path(store: Store, options: MountOptions) -> Path:
    if options.job is not None:
        store.ensure_job(options.job, time.time_ns())
    directory = store.layout.root if options.job is None else store.layout.job(options.job)
    log = directory / "daemon.log"
    if log.exists() and log.stat().st_size > LARGEST_LOG:
        log.rename(log.with_suffix(".log.1"))
    return log


def _private(path: str, flags: int) -> int:
    """An opener for `open`: a file that is made is its owner's alone, whatever the umask."""
    return os.open(path, flags, 0o600)


def configure_logging(verbose: bool) -> None:
    """Log to standard error: a line each, with the time."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)


def _heard(line: bytes, log: Path) -> Mounted:
    if not line:
        raise MountFailed(f"The daemon ended before it was ready; its last words are in {log}.")
    answer = json.loads(line)
    if "error" in answer:
        kind = getattr(errors, answer["kind"], MountFailed)
        error = FuseCkptError.__new__(kind if issubclass(kind, FuseCkptError) else MountFailed)
        Exception.__init__(error, answer["error"])
        raise error
    return msgspec.convert(answer, Mounted, dec_hook=lambda kind, value: kind(value))


def main() -> None:
    """Serve the mount that standard input describes."""
    from fuse_ckpt.session.service import serve

    options = msgspec.json.decode(sys.stdin.buffer.read(), type=MountOptions, dec_hook=lambda kind, value: kind(value))
    configure_logging(True)
    answers = int(sys.argv[1])
    said: list[object] = []

    def say(answer: object) -> None:
        said.append(answer)
        with contextlib.suppress(BrokenPipeError):  # whoever started us has gone; the mount has not
            os.write(answers, json.dumps(answer).encode() + b"\n")
        os.close(answers)

    try:
        serve(options, lambda mounted: say(msgspec.to_builtins(mounted, enc_hook=_as_text)))
    except FuseCkptError as exc:
        if said:
            raise
        say({"error": str(exc), "kind": type(exc).__name__})


def _as_text(value: object) -> str:
    return str(value)
