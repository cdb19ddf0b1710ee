"""An object store of several servers, each object on two of them, one of which dies while checkpoints go there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MountJob
from tests.mount.harness import sha256, wait_until
from tests.mount.runs import Desk, python
from tests.transfer.cluster import VOLUMES, Cluster, cluster
from tests.transfer.seaweed import BUCKET, NOWHERE

pytestmark = [pytest.mark.mount, pytest.mark.once]

SAVES = 12
TRAIN = f"""
    for step in range({SAVES}):
        made = out / f"tmp-{{step}}"
        made.mkdir()
        (made / "large").write_bytes(os.urandom(3_000_000))
        (made / "small").write_bytes(os.urandom(1000))
        made.rename(out / f"checkpoint-{{step}}")
        print("saved", step, flush=True)
        time.sleep(0.2)
    input()
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster") / "servers") as running:
        yield running


@pytest.fixture
def desks(tmp_path: Path, mount_job: MountJob) -> Iterator[list[Desk]]:
    """Two machines. (`mount_job` for its word on whether anything can be mounted here.)"""
    made = [Desk(tmp_path / name) for name in ("here", "there")]
    for desk in made:
        desk.top.mkdir()
    yield made
    assert [problem for desk in made for problem in desk.close()] == []


def attach(desk: Desk, servers: Cluster, path: str) -> None:
    options = ["--endpoint", servers.endpoint, "--bucket", BUCKET, "--credentials-file", str(servers.admin)]
    for command in (["create", "lake", "--provider", "s3", *options], ["attach", "lake", "--path", f"{BUCKET}/{path}"]):
        said = desk.cli("storage", *command, env=NOWHERE)
        assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("number", range(VOLUMES))
def test_a_volume_server_that_dies_under_uploads_costs_nothing(
    servers: Cluster, desks: list[Desk], tmp_path: Path, number: int
) -> None:
    here, there = desks
    here.expect_log("wait to be copied to lake")
    attach(here, servers, f"volume-{number}")
    run = here.start("job", "--replicate", "lake", command=python(TRAIN), env=NOWHERE)
    run.wait_line("saved 2")
    servers.kill_volume(number)
    run.wait_line(f"saved {SAVES - 1}")
    assert len(here.wait_for("job", SAVES)) == SAVES

    def copied() -> int:
        return [row["replicated"] for row in here.listed("job")].count("replicated")

    wait_until("copies are made with one server less", lambda: copied() > 4, patience=120)
    servers.restart_volume(number)
    run.tell()
    assert run.wait(120) == 0, run.err
    assert copied() == SAVES

    attach(there, servers, f"volume-{number}")
    for row in here.listed("job"):
        sums = [fetched(desk, row["id"], tmp_path / f"{desk.top.name}-{row['name']}") for desk in desks]
        assert sums[0].keys() == {"large", "small"}
        assert sums[0] == sums[1]


def fetched(desk: Desk, checkpoint: str, place: Path) -> dict[str, str]:
    said = desk.cli("checkpoint", "fetch", checkpoint, "--destination", str(place), env=NOWHERE)
    assert said.returncode == 0, said.stderr
    return {path.name: sha256(path) for path in place.iterdir()}
