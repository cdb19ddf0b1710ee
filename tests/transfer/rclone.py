"""A real server that speaks S3 and is not to be relied on: `rclone serve s3`, on loopback, over a directory.

It takes conditions and ignores them, and answers a request for a part of an object with the status of the whole.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuse_ckpt.model import Connection, Provider
from tests.mount.harness import wait_until
from tests.transfer.seaweed import ADMIN, BUCKET, HOST, PATIENCE, credentials, free_ports

RCLONE = str(Path(sys.executable).parent / "rclone")


@contextmanager
def serving(directory: Path) -> Iterator[Connection]:
    """The server, with one bucket, below `directory`/rclone."""
    (directory / "rclone" / BUCKET).mkdir(parents=True)
    (port,) = free_ports(1)
    endpoint = f"http://{HOST}:{port}"
    command = [
        RCLONE, "serve", "s3", "--config", "/dev/null", "--cache-dir", str(directory / "rclone-cache"),
        "--addr", f"{HOST}:{port}", "--auth-key", ",".join(ADMIN), str(directory / "rclone"),
    ]  # fmt: skip
    with (directory / "rclone.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until("rclone answers", lambda: _is_ready(endpoint), PATIENCE)
        file = credentials(directory / "rclone-credentials", ADMIN)
        yield Connection("rclone", Provider.S3, 1, endpoint=endpoint, bucket=BUCKET, credentials_file=str(file))
    finally:
        process.kill()
        process.wait()


def _is_ready(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True  # it knows S3, and not who asks
    except OSError:
        return False
