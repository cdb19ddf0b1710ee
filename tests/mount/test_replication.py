"""Checkpoints that go to an object store while training runs, whatever happens to whom, and come back elsewhere."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from fuse_ckpt.model import Connection, Provider, Replica, Stage
from fuse_ckpt.session import attach, control
from fuse_ckpt.store import Layout, Store
from fuse_ckpt.transfer import Place, access_of
from scripts.mountpoints import is_mounted
from tests.mount.harness import PROGRAM, sha256, wait_until
from tests.mount.runs import OUTPUT, Desk, one_line, python
from tests.transfer import proxy
from tests.transfer.proxy import Proxy
from tests.transfer.seaweed import BUCKET, NOWHERE, Seaweed

pytestmark = [pytest.mark.mount, pytest.mark.once]

DOWN = r"wait to be copied to lake"
DIED = r"the uploader ended with"
TRAIN = """
    weights = Path(os.environ["FLEXAI_INPUT_CHECKPOINT_DIR"]) / "weights" if len(sys.argv) > 1 else None
    state = int.from_bytes(weights.read_bytes()[:8], "big") if weights else 1
    for step in range(3):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        made = out / f"tmp-{step}"
        made.mkdir()
        (made / "weights").write_bytes(state.to_bytes(8, "big") * 300_000)
        (made / "vocabulary").write_bytes(b"never changes" * 1000)
        made.rename(out / f"checkpoint-{step}-{state % 100}")
        print("saved", state, flush=True)
"""


@pytest.fixture
def faulty(seaweed: Seaweed) -> Iterator[Proxy]:
    with proxy.before(seaweed.port) as found:
        yield found


class Machine(Desk):
    """A store of its own, with a way to the object store, at a place that machines of the test share."""

    def __init__(self, top: Path, connection: Connection, path: str) -> None:
        super().__init__(top)
        self._connection = connection
        self._path = path

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**NOWHERE, **more)

    def attach(self) -> None:
        with Store.open(self.store) as store:
            store.add_connection(self._connection)
            attach(store, "lake", NOWHERE, path=self._path)

    def standing(self, job: str) -> list[str]:
        """How each checkpoint's copy is, as the listing says it."""
        return [str(row["replicated"]) for row in self.listed(job)]

    def copies(self, job: str) -> dict[str, Replica]:
        """How the copies are, by NAME."""
        with Store.open(self.store) as store:
            found = store.checkpoints(job)
            replicas = store.replicas(one.id for one in found)
        return {one.name: replicas[one.id] for one in found if one.id in replicas}

    def rows(self, direct: Connection) -> list[str]:
        """The ids in the catalog; without the proxy, whose threads get no turn while deltalake reads."""
        bucket, _, prefix = self._path.partition("/")
        access = access_of(direct, Place(bucket, f"{prefix}/catalog"), NOWHERE, 5.0)
        table = DeltaTable(access.uri, storage_options=access.options)
        found: list[str] = table.scan(columns=["id"]).read_all().column("id").to_pylist()
        return found

    def uploader(self, job: str) -> int | None:
        status = control.ask(Layout(self.store).control(job), "status") or {}
        pid: int | None = status.get("uploader")
        return pid

    def wait_copied(self, job: str, count: int) -> None:
        def look() -> bool:
            copies = self.copies(job)
            return len(copies) == count and all(one.stage is Stage.REPLICATED for one in copies.values())

        wait_until(f"{count} copied", look)


Machines = Callable[..., Machine]


@pytest.fixture
def machine(tmp_path: Path, seaweed: Seaweed, faulty: Proxy, request: pytest.FixtureRequest) -> Iterator[Machines]:
    made: list[Machine] = []
    path = f"{BUCKET}/replication/{request.node.name}"

    def make() -> Machine:
        top = tmp_path / f"machine{len(made)}"
        top.mkdir()
        made.append(Machine(top, seaweed.connection(endpoint=faulty.endpoint), path))
        made[-1].attach()
        return made[-1]

    yield make
    assert [problem for one in made for problem in one.close()] == []


def saved(run: Any) -> list[str]:
    return [line for line in run.stdout.splitlines() if line.startswith("saved")]


def sums(machine: Machine, reference: str, destination: Path) -> dict[str, str]:
    said = machine.cli("checkpoint", "fetch", reference, "--destination", str(destination))
    assert said.returncode == 0, said.stderr
    return {path.name: sha256(path) for path in destination.iterdir()}


def test_a_run_is_copied_and_goes_on_on_another_machine(machine: Machines, faulty: Proxy, tmp_path: Path) -> None:
    """S24: a machine with an empty store resumes from it with the same files, bit for bit."""
    here, there = machine(), machine()
    first = here.run("job", "--replicate", "lake", command=python(TRAIN))
    assert first.returncode == 0, first.stderr
    assert "to be copied" in first.stderr
    here.wait_copied("job", 3)
    assert all(row["replicated"] == "replicated" for row in here.listed("job"))
    data = [path for path in faulty.sent() if "/d/" in path]
    assert len({path.rpartition("/")[2].partition("?")[0] for path in data}) == 4, "what never changes goes once"

    newest = here.listed("job")[-1]
    again = there.run("job", "-C", f"job/{newest['name']}", command=python(TRAIN, "resumed"))
    assert again.returncode == 0, again.stderr
    (row,) = [row for row in there.listed("job") if row["id"] == newest["id"]]
    assert row["replicated"] == "replicated"
    assert sums(there, newest["id"], tmp_path / "there") == sums(here, newest["id"], tmp_path / "here")
    same = here.run("same", "-C", newest["id"], command=python(TRAIN, "resumed"))
    assert saved(again) == saved(same), "the same numbers, to the last bit"
    others = [row for row in there.listed("job") if row["replicated"].endswith("not here")]
    assert len(others) == 2
    got = [path for method, path in faulty.seen if method == "GET" and "/d/" in path]
    assert len(got) == 2, "each byte goes over the network once"


def test_each_copy_of_a_run_has_its_row_in_the_catalog(machine: Machines, seaweed: Seaweed) -> None:
    here, direct = machine(), seaweed.connection()
    assert here.cli("catalog", "sync", "--storage-provider", "lake").returncode == 0
    done = here.run("job", "--replicate", "lake", command=python(TRAIN))
    assert done.returncode == 0, done.stderr
    here.wait_copied("job", 3)
    ids = sorted(row["id"] for row in here.listed("job"))
    wait_until("a row each", lambda: sorted(here.rows(direct)) == ids)
    said = here.cli("catalog", "sync", "--storage-provider", "lake")
    assert "nothing has changed, 3 rows" in said.stdout


def test_opening_a_file_waits_for_it_and_for_nothing_else(machine: Machines, faulty: Proxy) -> None:
    """S25: what cannot be had is EIO, and later opens try again."""
    here, there = machine(), machine()
    there.expect_log("a file cannot be fetched")
    done = here.run(
        "job", "--replicate", "lake", command=python("(out / 'a').mkdir(); (out / 'a/x').write_bytes(b'x' * 99)")
    )
    assert done.returncode == 0, done.stderr
    faulty.decide = lambda method, path, count: 403 if "/d/" in path else None
    code = """
        source = Path(os.environ["FLEXAI_INPUT_CHECKPOINT_DIR"])
        print("size", (source / "x").stat().st_size, flush=True)
        try:
            (source / "x").read_bytes()
        except OSError as error:
            print("refused", error.errno, flush=True)
        input()
        print("read", len((source / "x").read_bytes()), flush=True)
        (out / "b").write_bytes(b"goes on")
    """
    run = there.start("job", "-C", "job/a", command=python(code))
    run.wait_line("size 99")
    run.wait_line("refused 5")
    faulty.decide = lambda method, path, count: None
    run.tell()
    run.wait_line("read 99")
    assert run.wait() == 0
    assert [row["replicated"] for row in there.listed("job")] == ["replicated", "local"]


def test_a_large_file_whose_fetch_was_killed_is_gone_on_with(machine: Machines, faulty: Proxy, tmp_path: Path) -> None:
    """S25: each byte comes over the network once, but for the three ranges that may be on their way at a kill."""
    here, there = machine(), machine()
    save = "(out / 'a').write_bytes(os.urandom(10 << 23))"
    assert here.run("job", "--replicate", "lake", command=python(save)).returncode == 0
    assert there.cli("storage", "sync", "lake").returncode == 0
    passed: list[str] = []

    def sixty_percent(method: str, path: str, count: int) -> int | None:
        if method != "GET" or "/d/" not in path:
            return None
        passed.append(path)
        return None if len(passed) <= 6 else proxy.HANG_UP

    faulty.restart()
    faulty.decide = sixty_percent
    fetching = there.launch(
        [*PROGRAM, "--store", str(there.store), "checkpoint", "fetch", "job/a", "--destination", str(tmp_path / "x")]
    )
    held = there.store / "incoming"
    wait_until("six are here", lambda: [one.stat().st_size for one in held.glob("fetch-*/bytes.part")] == [6 << 23])
    fetching.process.kill()
    fetching.process.wait()
    faulty.decide = lambda method, path, count: None
    found = sums(there, "job/a", tmp_path / "there")
    assert found == sums(here, "job/a", tmp_path / "here")
    assert 10 <= len([path for method, path in faulty.seen if method == "GET" and "/d/" in path]) <= 13
    assert list(held.iterdir()) == []


def test_prefetch_has_all_of_it_here_before_the_command_begins(machine: Machines) -> None:
    here, there = machine(), machine()
    assert here.run("job", "--replicate", "lake", command=python("(out / 'a').write_bytes(b'x')")).returncode == 0
    done = there.run("job", "-C", "job/a", "--prefetch", command=["true"])
    assert (done.returncode, "100 % of 1 byte" in done.stderr) == (0, True)
    assert there.listed("job")[0]["replicated"] == "replicated"


def test_what_is_known_for_nothing_is_refused_before_a_byte_is_fetched(
    machine: Machines, faulty: Proxy, tmp_path: Path
) -> None:
    here, there = machine(), machine()
    assert here.run("job", "--replicate", "lake", command=python("(out / 'a').write_bytes(b'x')")).returncode == 0
    assert there.run("again", command=["true"]).returncode == 0
    (tmp_path / "plain").write_text("")
    (tmp_path / "full" / "x").mkdir(parents=True)
    faulty.restart()
    for code, words, job, command, place in (
        (127, "no command 'no-such-command'", "new", "no-such-command", {}),
        (126, "cannot be executed", "new", str(tmp_path / "plain"), {}),
        (125, "--restart", "again", "true", {}),
        (2, "is not empty", "new", "true", {OUTPUT: str(tmp_path / "full")}),
    ):
        said = there.run(job, "-C", "job/a", "--prefetch", command=[command], env=place)
        assert (said.returncode, one_line(said.stderr), words in said.stderr) == (code, True, True), said.stderr
    assert faulty.seen == []
    assert there.committed("job") == there.committed("new") == []


def test_a_killed_uploader_and_a_server_that_is_gone_only_delay(
    machine: Machines, faulty: Proxy, tmp_path: Path
) -> None:
    """S23: one that is down, or an uploader that dies, only delays."""
    here = machine()
    here.expect_log(DOWN)
    here.expect_log(DIED)
    faulty.decide = lambda method, path, count: 503
    run = here.start(
        "job", "--replicate", "lake",
        command=python("(out / 'a').write_bytes(b'a' * 9_000_000); input(); (out / 'b').write_bytes(b'b'); input()"),
    )  # fmt: skip
    here.wait_for("job", 1)
    killed = wait_until("an uploader", lambda: here.uploader("job"))
    os.kill(killed, signal.SIGKILL)
    run.tell()
    here.wait_for("job", 2)
    wait_until("another uploader", lambda: here.uploader("job") not in (None, killed))
    assert {one.stage for one in here.copies("job").values()} <= {Stage.WAITING, Stage.UPLOADING}
    faulty.decide = lambda method, path, count: None
    here.wait_copied("job", 2)
    run.tell()
    assert run.wait() == 0


def test_what_a_signal_leaves_is_copied_by_hand(machine: Machines, faulty: Proxy, tmp_path: Path) -> None:
    here = machine()
    here.expect_log(DOWN)
    faulty.decide = lambda method, path, count: 503
    run = here.start("job", "--replicate", "lake", command=python("(out / 'a').write_bytes(b'a'); print('end')"))
    wait_until("it waits", lambda: "to be copied; Ctrl-C" in run.err)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 0
    assert "left to copy" in run.err
    assert here.listed("job")[0]["replicated"] in ("waiting", "uploading 0 %")
    waiting = here.cli("checkpoint", "wait", "job/a", "--status", "replicated", "--timeout", "0")
    assert waiting.returncode == 1
    refused = here.cli("storage", "detach", "lake")
    assert (refused.returncode, "wait to be copied" in refused.stderr) == (5, True)
    faulty.decide = lambda method, path, count: None
    said = here.cli("storage", "sync", "lake")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("Copied 1 checkpoints (1 byte) to lake")
    assert here.cli("checkpoint", "wait", "job/a", "--status", "replicated").returncode == 0
    stats = json.loads(here.cli("stats", "--json").stdout)["storage"]
    assert [(one["name"], one["waiting"], one["waitingBytes"]) for one in stats] == [("lake", 0, 0)]


def test_without_drain_the_next_mount_goes_on(machine: Machines, faulty: Proxy) -> None:
    """S23: what an unmount leaves, the next mount of the job goes on with."""
    here = machine()
    here.expect_log(DOWN)
    faulty.decide = lambda method, path, count: 503
    done = here.run("job", "--replicate", "lake", "--no-drain", command=python("(out / 'a').write_bytes(b'a')"))
    assert (done.returncode, "left to copy" in done.stderr) == (0, True)
    faulty.decide = lambda method, path, count: None
    done = here.run("job", "--restart", command=python("(out / 'b').write_bytes(b'b')"))
    assert done.returncode == 0, done.stderr
    here.wait_copied("job", 2)


def test_a_policy_lets_go_here_of_what_is_replicated(machine: Machines, tmp_path: Path) -> None:
    """S26: what is copied, they let go of here alone."""
    here = machine()
    options = ["--replicate", "lake", "--retain", "keep-last=1"]
    run = here.start("job", *options, command=python(TRAIN + "    input()\n    (out / 'end').write_bytes(b'end')"))
    here.wait_copied("job", 3)
    run.tell()
    assert run.wait() == 0, run.err
    assert here.standing("job") == ["replicated, not here", "replicated, not here", "replicated", "replicated"]
    first = here.listed("job")[0]
    code = "print(sum(len(one.read_bytes()) for one in Path(os.environ['FLEXAI_INPUT_CHECKPOINT_DIR']).iterdir()))"
    again = here.run("again", "-C", first["id"], command=python(code))
    assert (again.returncode, again.stdout) == (0, f"{first['sizeBytes']}\n")


def test_the_uploader_ends_with_its_mount(machine: Machines) -> None:
    here = machine()
    run = here.start("job", "--replicate", "lake", command=python("input()"))
    uploader = wait_until("an uploader", lambda: (here.store / "format").exists() and here.uploader("job"))
    (daemon,) = here.daemons_of(run)
    os.kill(daemon, signal.SIGKILL)
    wait_until("it has ended", lambda: not Path(f"/proc/{uploader}").exists())
    run.tell()
    assert run.wait() == 0
    assert here.cli("umount", str(here.store / "mounts/job/output-checkpoint")).returncode in (0, 2)


def test_a_checkpoint_of_two_nodes_is_one(machine: Machines, tmp_path: Path) -> None:
    """S27: one checkpoint once every part of it is there, and never offered before."""
    nodes = [machine(), machine()]
    code = """
        rank = sys.argv[1]
        made = out / "tmp"
        made.mkdir()
        (made / f"shard-{rank}").write_bytes(rank.encode() * 1000)
        (made / "config").write_bytes(b"the same on both")
        made.rename(out / "checkpoint-7")
    """
    first = nodes[0].run(
        "job", "--replicate", "lake", "--nodes", "2", "--rank", "0", "--attempt", "x", command=python(code, "0")
    )
    assert first.returncode == 0, first.stderr
    (row,) = nodes[0].listed("job")
    assert row["replicated"] == "partial 1/2 (missing rank 1)"
    assert machine().cli("training", "run", "job", "-C", "job:latest", "--", "true").returncode == 125
    second = nodes[1].run(
        "job", "--replicate", "lake", "--nodes", "2", "--rank", "1", "--attempt", "x", command=python(code, "1")
    )
    assert second.returncode == 0, second.stderr
    assert nodes[0].cli("storage", "sync", "lake").returncode == 0
    rows = [node.listed("job") for node in nodes]
    assert [len(one) for one in rows] == [1, 1]
    assert {(one[0]["id"], one[0]["node"], one[0]["sizeBytes"]) for one in rows} == {(rows[0][0]["id"], "0,1", 2016)}
    elsewhere = machine()
    found = sums(elsewhere, rows[0][0]["id"], tmp_path / "elsewhere")
    assert sorted(found) == ["config", "shard-0", "shard-1"]
    assert sums(nodes[0], "job/checkpoint-7", tmp_path / "node0") == found
    assert nodes[0].cli("checkpoint", "inspect", row["id"]).returncode == 0, "by the id that its part had"


def test_what_cannot_be_is_refused_before_the_command_runs(machine: Machines, tmp_path: Path) -> None:
    here = machine()
    ran = tmp_path / "ran"
    command = ["touch", str(ran)]
    for options, words in (
        (["--replicate", "sea"], "Unknown storage connection: sea"),
        (["--replicate", "lake", "--nodes", "2", "--rank", "2", "--attempt", "x"], "--rank 2 is none of 2 nodes"),
        (["--replicate", "lake", "--nodes", "2", "--rank", "0"], "Give --attempt"),
        (["--replicate", "lake", "--nodes", "auto"], "give --nodes N"),
    ):
        said = here.run("job", *options, command=command)
        assert said.returncode in (2, 125), said
        assert words in said.stderr
    assert not ran.exists()


def mounted(machine: Machine, *options: str) -> Path:
    """Mount the job, as a person does who starts training by other means."""
    place = machine.top / "out"
    place.mkdir(exist_ok=True)
    said = machine.cli("mount", "job", str(place), *options)
    assert said.returncode == 0, said.stderr
    return place


def unmounted(machine: Machine, place: Path) -> None:
    said = machine.cli("umount", str(place))
    assert said.returncode == 0, said.stderr
    assert not is_mounted(place)


def test_a_mount_copies_what_is_saved_into_it_and_goes_on_with_what_it_left(machine: Machines, faulty: Proxy) -> None:
    here = machine()
    here.expect_log(DOWN)
    place = mounted(here, "--replicate", "lake")
    (place / "a").write_bytes(b"a" * 1000)
    here.wait_copied("job", 1)
    faulty.decide = lambda method, path, count: 503
    (place / "b").write_bytes(b"b" * 1000)
    here.wait_for("job", 2)
    unmounted(here, place)
    assert here.standing("job")[0] == "replicated"
    assert here.standing("job")[1] in ("waiting", "uploading 0 %")
    faulty.decide = lambda method, path, count: None
    place = mounted(here)
    here.wait_copied("job", 2)
    unmounted(here, place)


def test_a_mount_takes_replication_back_and_refuses_what_cannot_be(machine: Machines, faulty: Proxy) -> None:
    here = machine()
    for name, words in (("sea", "Unknown storage connection: sea"), ("none", None)):
        place = here.top / "out"
        place.mkdir(exist_ok=True)
        said = here.cli("mount", "job", str(place), "--replicate", name)
        assert (said.returncode == 0) is (words is None), said.stderr
        if words is None:
            unmounted(here, place)
        else:
            assert (one_line(said.stderr), words in said.stderr, is_mounted(place)) == (True, True, False)
    place = mounted(here, "--replicate", "lake")
    unmounted(here, place)
    place = mounted(here, "--replicate", "none")
    (place / "a").write_bytes(b"a")
    here.wait_for("job", 1)
    unmounted(here, place)
    assert here.standing("job") == ["local"]
    assert not [path for path in faulty.sent() if "/d/" in path]


def test_a_mount_copies_into_a_directory_and_another_reads_its_input_from_there(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    machines = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        connection = Connection("lake", Provider.FILE, 1, root=str(tmp_path / "archive"))
        machines.append(Machine(tmp_path / name, connection, "shared"))
        machines[-1].attach()
    here, there = machines
    place = mounted(here, "--replicate", "lake")
    (place / "step_1").mkdir()
    (place / "step_1" / "weights").write_bytes(b"w" * 1000)
    here.wait_copied("job", 1)
    unmounted(here, place)
    place = mounted(there, "--input", "job/step_1")
    (found,) = there.committed("job")
    source = place / ".checkpoints" / "by-id" / found.id
    assert (source / "weights").read_bytes() == b"w" * 1000
    wait_until("it is here", lambda: there.standing("job") == ["replicated"])
    unmounted(there, place)
    assert here.close() + there.close() == []


def test_browse_shows_what_other_machines_have_put_there_and_fetches_what_is_opened(
    machine: Machines, faulty: Proxy
) -> None:
    here, there = machine(), machine()
    there.expect_log("a file cannot be fetched")
    save = "(out / 'a').mkdir(); (out / 'a/x').write_bytes(b'x' * 99); (out / 'a/y').write_bytes(b'y')"
    assert here.run("job", "--replicate", "lake", command=python(save)).returncode == 0
    assert there.cli("storage", "sync", "lake").returncode == 0
    place = there.top / "all"
    place.mkdir()
    said = there.cli("browse", str(place))
    assert said.returncode == 0, said.stderr
    shown = place / "job" / "by-name" / "a@1"
    wait_until("it is shown", shown.exists)
    assert {path.name: path.stat().st_size for path in shown.iterdir()} == {"x": 99, "y": 1}
    faulty.decide = lambda method, path, count: 403 if "/d/" in path else None
    with pytest.raises(OSError) as refused:  # noqa: PT011
        (shown / "x").read_bytes()
    assert refused.value.errno == errno.EIO
    faulty.decide = lambda method, path, count: None
    assert (shown / "x").read_bytes() == b"x" * 99
    assert (shown / "y").read_bytes() == b"y"
    wait_until("it is here", lambda: there.standing("job") == ["replicated"])
    unmounted(there, place)
