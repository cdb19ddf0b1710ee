"""A real object store on loopback: SeaweedFS, as S3, for as long as the tests need it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.transfer import Remote
from tests.mount.harness import wait_until

HOST = "127.0.0.1"
BUCKET = "models"
ADMIN = ("admin-key", "admin-secret-0123456789abcdef")
READER = ("reader-key", "reader-secret-0123456789abcdef")
WEED = str(Path(sys.executable).parent / "weed")
GRPC = 10_000  # each of its servers also listens this much above its port
# Below what the kernel gives to whoever asks for any port (ip_local_port_range), with GRPC too: a server takes its port
# some seconds after it was chosen. Those of each worker of pytest-xdist are its own.
PORTS, WORKERS = range(11_000, 22_000), 8
PATIENCE = 120.0  # seconds for a server to start
NOWHERE = {"AWS_METADATA_ENDPOINT": f"http://{HOST}:1/"}  # nobody may ask the machine's own metadata service


def credentials(path: Path, pair: tuple[str, str]) -> Path:
    """A credentials file as AWS has it, for us alone."""
    path.touch(mode=0o600)
    path.write_text(f"[default]\naws_access_key_id = {pair[0]}\naws_secret_access_key = {pair[1]}\n")
    return path


class S3Server:
    """The S3 of a running SeaweedFS, with one bucket. `admin` may do all, `reader` may only read and list."""

    def __init__(self, directory: Path, port: int, host: str = HOST) -> None:
        self._host = host
        self.port = port
        self.admin = credentials(directory / "admin", ADMIN)
        self.reader = credentials(directory / "reader", READER)

    @property
    def endpoint(self) -> str:
        return f"http://{self._host}:{self.port}"

    def connection(self, *, endpoint: str | None = None, file: Path | None = None) -> Connection:
        return Connection(
            "lake",
            Provider.S3,
            1,
            endpoint=endpoint or self.endpoint,
            bucket=BUCKET,
            credentials_file=str(file or self.admin),
        )

    def remote(self, *, endpoint: str | None = None, file: Path | None = None, patience: float = 5.0) -> Remote:
        return Remote(self.connection(endpoint=endpoint, file=file), BUCKET, NOWHERE, patience)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return error.code == 403  # it knows S3, and not who asks
        except OSError:
            return False

    def remove_sockets(self, *ports: int) -> None:
        """What its processes leave in the temporary directory when they are killed."""
        for port in ports:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_file.unlink(missing_ok=True)
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + GRPC}.sock"):
                socket_file.unlink(missing_ok=True)


class Seaweed(S3Server):
    """All of it in one process."""

    def __init__(self, directory: Path, volumes: int) -> None:
        self._directory = directory
        self._volumes = volumes  # of 256 MB; what was removed leaves none of them empty
        (directory / "data").mkdir(parents=True)
        self._master, self._volume, self._filer, s3 = free_ports(4)
        super().__init__(directory, s3)
        self.process = self._start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """After `kill`: on the same data, and the same ports."""
        self.process = self._start()

    def close(self) -> None:
        self.kill()  # its data is a test's: nothing is worth a clean end, which takes it many seconds
        self.remove_sockets(self._master, self._volume, self._filer, self.port)

    def _is_up(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, (self._directory / "log").read_text(errors="replace")[-2000:]
        return self.is_ready()

    def _start(self) -> subprocess.Popen[bytes]:
        config = write_config(self._directory)
        command = [
            WEED, "server", f"-dir={self._directory / 'data'}", f"-ip={HOST}",
            f"-ip.bind={HOST}", "-master.telemetry=false", "-master.electionTimeout=1s", f"-volume.max={self._volumes}",
            "-master.volumeSizeLimitMB=256", f"-master.port={self._master}", f"-volume.port={self._volume}", "-filer",
            f"-filer.port={self._filer}", "-s3", f"-s3.port={self.port}", f"-s3.config={config}",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]  # fmt: skip
        with (self._directory / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._directory, env=environment(self._directory)
            )
        try:
            wait_until("SeaweedFS answers", lambda: self._is_up(process), PATIENCE)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process


def environment(directory: Path) -> dict[str, str]:
    """SeaweedFS leaves its own logs in the directory for temporary files."""
    return os.environ | {"TMPDIR": str(directory)}


def write_config(directory: Path) -> Path:
    """Who may do what, for the S3 of a server."""
    identities = [_identity("admin", ADMIN, "Admin"), _identity("reader", READER, "Read", "List")]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    return config


def _identity(name: str, pair: tuple[str, str], *actions: str) -> dict[str, object]:
    return {"name": name, "credentials": [{"accessKey": pair[0], "secretKey": pair[1]}], "actions": list(actions)}


def free_ports(count: int, host: str = HOST) -> list[int]:
    """Ports that nobody listens on, nor `GRPC` above them."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    candidates = list(range(PORTS.start + worker % WORKERS, PORTS.stop, WORKERS))
    random.shuffle(candidates)
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = candidates.pop()
            with contextlib.suppress(OSError):
                for one in (port, port + GRPC):
                    held.enter_context(socket.socket()).bind((host, one))
                found.append(port)
    return found


@contextlib.contextmanager
def running(directory: Path, volumes: int = 20) -> Iterator[Seaweed]:
    server = Seaweed(directory, volumes)
    try:
        server.remote(patience=30.0).put("warm", b"")  # the first object makes the bucket and its volumes
        yield server
    finally:
        server.close()
