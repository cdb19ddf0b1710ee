"""Object stores that refuse, lose answers, or are not what they seem; and the way to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuse_ckpt.errors import CredentialsRefused, PermissionRefused, StorageFailed, Unreachable
from fuse_ckpt.sharing import GroupState, SharedStore, state_of
from fuse_ckpt.transfer import Place, probe
from tests.sharing.careless import Careless, careless_store
from tests.sharing.conftest import JOB, NS, Node, bytes_of, established
from tests.transfer.proxy import HANG_UP, LOST, Proxy, before
from tests.transfer.seaweed import BUCKET, Seaweed, credentials

HOUR_NS = 3600 * 10**9


@pytest.fixture
def faulty(seaweed: Seaweed) -> Iterator[Proxy]:
    with before(seaweed.port) as found:
        yield found


@pytest.fixture
def behind(seaweed: Seaweed, faulty: Proxy, place: Place) -> SharedStore:
    """A shared store behind the proxy."""
    return established(SharedStore(seaweed.remote(endpoint=faulty.endpoint, patience=3.0), place, owner="me"))


@pytest.fixture
def careless(tmp_path: Path) -> Iterator[Careless]:
    with careless_store(tmp_path) as found:
        yield found


@pytest.mark.parametrize("verdict", [LOST, 409, 503, HANG_UP])
@pytest.mark.parametrize("register", ["/p/", "/c/", "/x/"])
def test_a_create_without_an_answer_is_told_by_looking(
    behind: SharedStore, faulty: Proxy, tmp_path: Path, verdict: int, register: str
) -> None:
    """Twice in a row: once it has landed and nobody said so, or nothing has landed at all."""
    harmed: list[str] = []

    def decide(method: str, path: str, count: int) -> int | None:
        if method == "PUT" and register in path and len(harmed) < 2:
            harmed.append(path)
            return verdict
        return None

    faulty.decide = decide
    one = Node(behind, tmp_path / "node")
    part = one.part("a", one.send(one.group("a"), {"x": b"1"}))
    assert behind.put_part(part).ours
    standing = behind.reconcile(JOB, part.group)
    assert standing.state is GroupState.REPLICATED
    behind.tombstone(JOB, part.group, NS)
    assert behind.standing(JOB, part.group).state is GroupState.DELETED
    assert harmed


def test_who_decides_without_an_answer_adopts_what_another_decided(
    behind: SharedStore, seaweed: Seaweed, faulty: Proxy, tmp_path: Path
) -> None:
    part = Node(behind, tmp_path / "node").save("a", {"x": b"1"})
    other = SharedStore(seaweed.remote(), behind.place, owner="other")

    def decide(method: str, path: str, count: int) -> int | None:
        if method == "PUT" and "/c/" in path and other.standing(JOB, part.group).state is GroupState.PARTIAL:
            other.abort(JOB, part.group, "first", NS)
            return 503
        return None

    faulty.decide = decide
    standing = behind.reconcile(JOB, part.group)
    assert standing.decision is not None
    assert (standing.state, standing.decision.reason, standing.decision.by) == (GroupState.ABORTED, "first", "other")


def test_a_store_that_is_down_only_delays(behind: SharedStore, faulty: Proxy, tmp_path: Path) -> None:
    one = Node(behind, tmp_path / "node")
    faulty.decide = lambda method, path, count: HANG_UP
    with pytest.raises(Unreachable):
        one.save("a", {"x": b"1"})
    faulty.decide = lambda method, path, count: 503 if method == "PUT" else None
    with pytest.raises(StorageFailed, match="503"):
        one.save("a", {"x": b"1"})
    assert behind.standing(JOB, one.group("a")).state is GroupState.ABSENT
    faulty.decide = lambda method, path, count: None
    assert behind.reconcile(JOB, one.save("a", {"x": b"1"}).group).state is GroupState.REPLICATED


def test_each_byte_comes_once_over_the_network(behind: SharedStore, faulty: Proxy, tmp_path: Path) -> None:
    data = bytes(range(256)) * (20 << 12)
    part = Node(behind, tmp_path / "node").save("a", {"x": data})
    behind.reconcile(JOB, part.group)
    (file,) = behind.read(JOB, part.group).files
    faulty.restart()
    behind.fetch_file(JOB, file, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    assert [method for method, _ in faulty.seen] == ["GET"] * -(-len(data) // (8 << 20))


def test_what_a_checkpoint_costs_in_requests(behind: SharedStore, faulty: Proxy, tmp_path: Path) -> None:
    """The calculation in docs/design.md counts with these."""
    nodes = [Node(behind, tmp_path / f"{rank}", rank, 2) for rank in range(2)]
    counts = []
    for one in nodes:
        faulty.restart()
        group = one.save("a", {f"{one.rank}": b"1", f"large-{one.rank}": bytes(20 << 20)}).group
        behind.reconcile(JOB, group, rank=one.rank)
        reads = sum(method in ("GET", "HEAD") and "list-type" not in path for method, path in faulty.seen)
        counts.append((len(faulty.seen) - reads, reads))
    # Written or listed: one small file, three parts of a large one and two for their whole, one part, two listings;
    # read: two files, two registers of the part, three of the group.
    assert counts[0] == (6 + 1 + 2, 2 + 2 + 3)
    # Who decides lists again, writes the decision, and reads two parts, the decision, and whether it is deleted.
    assert counts[1] == (6 + 1 + 2 + 2, 2 + 2 + 3 + 4)


def test_who_may_not_write_is_told_so_and_may_read(behind: SharedStore, seaweed: Seaweed, tmp_path: Path) -> None:
    part = Node(behind, tmp_path / "node").save("a", {"x": b"1"})
    behind.reconcile(JOB, part.group)
    reader = SharedStore(seaweed.remote(file=seaweed.reader), behind.place)
    assert bytes_of(reader, part.group, tmp_path / "out") == {"x": b"1"}
    for attempt in (
        lambda: Node(reader, tmp_path / "reader").save("b", {"x": b"1"}),
        lambda: reader.abort(JOB, part.group, "no", NS),
        lambda: reader.tombstone(JOB, part.group, NS),
    ):
        with pytest.raises(PermissionRefused, match="does not permit this"):
            attempt()
    assert behind.standing(JOB, part.group).state is GroupState.REPLICATED
    stranger = credentials(tmp_path / "stranger", ("nobody", "0123456789"))
    with pytest.raises(CredentialsRefused):
        SharedStore(seaweed.remote(file=stranger), behind.place).open()


def test_clocks_that_are_wrong_by_an_hour_change_nothing(seaweed: Seaweed, place: Place, tmp_path: Path) -> None:
    """Grace and age are by the object store's clock, whatever a machine's says."""
    shared = established(SharedStore(seaweed.remote(), place))
    one = Node(shared, tmp_path / "node", 0, 2)
    lonely = one.save("a", {"x": b"1"}, sealed_ns=1, created_ns=1)
    whole = Node(shared, tmp_path / "node").save("b", {"x": b"1"}, sealed_ns=2**62)
    for now_ns in (1, NS, 2**62):
        assert [each.state for each in shared.reap(JOB, now_ns)] in ([GroupState.REPLICATED], [])
        shared.tombstone(JOB, whole.group, now_ns)
        assert shared.delete(JOB, [whole.group], grace_ns=HOUR_NS) == []
    assert state_of(shared.standing(JOB, lonely.group)) == "partial 1/2 (missing rank 1)"


def test_a_store_that_ignores_conditions_is_refused(careless: Careless) -> None:
    remote, place = careless.remote(), Place(BUCKET, "shared")
    found = probe(remote, place)
    assert (found.second_create, found.winners, found.creates_once) == (True, 16, False)
    with pytest.raises(StorageFailed, match="machines cannot share such a store"):
        SharedStore(remote, place).establish(found, NS)
    assert careless.objects == {}


@pytest.fixture
def exclusive(careless: Careless) -> SharedStore:
    remote, place = careless.remote(), Place(BUCKET, "shared")
    store = SharedStore(remote, place, owner="me")
    store.establish(probe(remote, place), NS, exclusive=True)
    return store


def test_one_machine_alone_may_use_it(exclusive: SharedStore, careless: Careless, tmp_path: Path) -> None:
    part = Node(exclusive, tmp_path / "node").save("a", {"x": b"1"})
    assert exclusive.reconcile(JOB, part.group).state is GroupState.REPLICATED
    assert exclusive.jobs() == [JOB]
    other = SharedStore(careless.remote(), exclusive.place, owner="you")
    with pytest.raises(StorageFailed, match="for the exclusive use of me"):
        Node(other, tmp_path / "other").save("b", {"x": b"1"})
    assert [one.id for one in other.list(JOB)] == [part.local]


def test_a_store_that_truncates_makes_no_part(exclusive: SharedStore, careless: Careless, tmp_path: Path) -> None:
    one = Node(exclusive, tmp_path / "node")
    (file,) = one.send(one.group("a"), {"x": b"12345678"})
    careless.truncates = file.digest
    careless.objects.clear()
    established_again = SharedStore(careless.remote(), exclusive.place, owner="me")
    established_again.establish(probe(careless.remote(), exclusive.place), NS, exclusive=True)
    one = Node(established_again, tmp_path / "node")
    with pytest.raises(StorageFailed, match="has 4 bytes instead of 8"):
        one.save("a", {"x": b"12345678"})
    careless.truncates = None
    part = one.save("a", {"x": b"12345678"})
    careless.truncates = ".json"
    with pytest.raises(StorageFailed, match="is not as it was sent"):
        established_again.reconcile(JOB, part.group)


def test_a_stale_listing_only_delays(exclusive: SharedStore, careless: Careless, tmp_path: Path) -> None:
    one, two = (Node(exclusive, tmp_path / f"{rank}", rank, 2) for rank in range(2))
    part = one.save("a", {"x": b"1"})
    sent = two.send(part.group, {"y": b"2"})
    careless.hidden = {f"shared/j/{JOB}/{sent[0].key}", f"shared/j/{JOB}/p/{part.group}/00001.json"}
    exclusive.put_part(two.part("a", sent))
    assert state_of(exclusive.reconcile(JOB, part.group)) == "partial 1/2 (missing rank 1)"
    assert [each.state for each in exclusive.reap(JOB, NS, older_than_ns=-HOUR_NS)] == [GroupState.REPLICATED]
    assert bytes_of(exclusive, part.group, tmp_path / "out") == {"x": b"1", "y": b"2"}
