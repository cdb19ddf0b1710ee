"""SeaweedFS of several processes: a master, volume servers that keep each object twice, a filer that speaks S3."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from fuse_ckpt.errors import StorageFailed
from tests.mount.harness import wait_until
from tests.transfer.seaweed import HOST, WEED, S3Server, environment, free_ports, write_config

VOLUMES = 3  # servers; two of them have each object
FIRST_PATIENCE = 60.0  # seconds until two volume servers are known and the first object is there


class Cluster(S3Server):
    """Each process can be killed and started again, on its data and its ports. `host`: the address they listen on."""

    def __init__(self, directory: Path, host: str = HOST) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._master, self._filer, s3, *self._ports = free_ports(3 + VOLUMES, host)
        super().__init__(directory, s3, host)
        self._config = write_config(directory)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def kill_volume(self, number: int) -> None:
        """SIGKILL to a volume server."""
        process = self._processes[f"volume{number}"]
        process.kill()
        process.wait()

    def restart_volume(self, number: int) -> None:
        """After `kill_volume`; returns at once."""
        self._start(
            f"volume{number}", "volume", f"-port={self._ports[number]}", f"-dir={self._place(f'data{number}')}",
            "-max=40", f"-master={self._host}:{self._master}",
        )  # fmt: skip

    def close(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.remove_sockets(self._master, self._filer, self.port, *self._ports)

    def _start_all(self) -> None:
        self._start(
            "master", "master", f"-port={self._master}", f"-mdir={self._place('master')}", "-defaultReplication=001",
            "-volumeSizeLimitMB=256", "-telemetry=false", "-electionTimeout=1s",
        )  # fmt: skip
        for number in range(VOLUMES):
            self.restart_volume(number)
        self._start(
            "filer", "filer", f"-port={self._filer}", f"-master={self._host}:{self._master}", "-s3",
            f"-s3.port={self.port}", f"-s3.config={self._config}", "-defaultReplicaPlacement=001",
            "-s3.port.iceberg=0", "-s3.port.lance=0",
        )  # fmt: skip
        wait_until("SeaweedFS answers", self.is_ready, FIRST_PATIENCE)
        wait_until("a first object is written", self._writes, FIRST_PATIENCE)

    def _writes(self) -> bool:
        try:
            self.remote(patience=1.0).put("warm", b"written")
            return True
        except StorageFailed:  # too few volume servers are known yet
            time.sleep(0.2)
            return False

    def _place(self, name: str) -> Path:
        place = self._directory / name
        place.mkdir(exist_ok=True)
        return place

    def _start(self, name: str, *arguments: str) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [WEED, *arguments, f"-ip={self._host}", f"-ip.bind={self._host}"],
                stdout=log, stderr=log, cwd=self._place(f"{name}.cwd"), env=environment(self._directory),
            )  # fmt: skip


@contextlib.contextmanager
def cluster(directory: Path, host: str = HOST) -> Iterator[Cluster]:
    server = Cluster(directory, host)
    try:
        yield server
    finally:
        server.close()
