"""What a node sees of a shared store: on SeaweedFS, and on a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from blake3 import blake3

from fuse_ckpt import faults
from fuse_ckpt.errors import Corrupt, CorruptBlob, NotFound, StorageFailed, UnknownCheckpoint, UsageError, Withdrawn
from fuse_ckpt.model import Entry, Kind, Metadata
from fuse_ckpt.sharing import Decision, GroupState, PartFile, SharedStore, group_of, packing, removing, state_of
from fuse_ckpt.sharing.documents import written
from fuse_ckpt.sharing.values import Pack
from fuse_ckpt.transfer import Place, Remote, Stop, run
from tests.dying import Crash
from tests.sharing.conftest import JOB, NS, MakeNode, Node, bytes_of, established, keys_below, probed
from tests.transfer.seaweed import Seaweed

DAY_NS = 86_400 * 10**9


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys of the small objects that are asked for in the block."""
    asked: list[str] = []
    real = Remote.get

    def get(self: Remote, key: str, limit: int) -> bytes | None:
        asked.append(key)
        return real(self, key, limit)

    with monkeypatch.context() as patched:
        patched.setattr(Remote, "get", get)
        yield asked


def test_a_checkpoint_of_one_node_is_a_group_of_one_part(node: MakeNode, shared: SharedStore, tmp_path: Path) -> None:
    one = node()
    files = {"a.pt": b"weights", "empty": b"", "d/b.pt": os.urandom(300_000)}
    part = one.save("checkpoint-500", files, metadata=Metadata(step=500, train_loss=float("nan")))
    standing = shared.reconcile(JOB, part.group)
    assert standing.state is GroupState.REPLICATED
    assert standing.decision is not None
    assert (standing.decision.id, standing.decision.files, standing.decision.size) == (part.local, 3, 300_007)
    assert standing.decision.metadata == Metadata(step=500)
    assert bytes_of(shared, part.group, tmp_path / "out") == files
    assert [one.id for one in shared.list(JOB)] == [part.local]
    assert shared.find(JOB, part.local).group == part.group
    assert shared.jobs() == [JOB]


def test_the_last_part_makes_a_checkpoint_of_all(node: MakeNode, shared: SharedStore, tmp_path: Path) -> None:
    nodes = [node(rank, 4) for rank in range(4)]
    for rank in (3, 0, 1):
        nodes[rank].save("step_7", {f"__{rank}_0.distcp": bytes([rank]) * 1000, "latest": b"7"})
    group = nodes[0].group("step_7")
    assert state_of(shared.reconcile(JOB, group)) == "partial 3/4 (missing rank 2)"
    assert shared.list(JOB) == []
    with pytest.raises(UnknownCheckpoint):
        shared.read(JOB, group)
    assert [state_of(one) for one in shared.undecided(JOB)] == ["partial 3/4 (missing rank 2)"]
    nodes[2].save("step_7", {"__2_0.distcp": b"\2" * 1000})
    standing = shared.reconcile(JOB, group)
    assert state_of(standing) == "replicated"
    assert standing == shared.reconcile(JOB, group) == shared.standing(JOB, group)
    assert standing.decision is not None
    assert (standing.decision.files, standing.decision.size) == (5, 4001)
    assert set(bytes_of(shared, group, tmp_path / "out")) == {"latest", *(f"__{rank}_0.distcp" for rank in range(4))}
    assert shared.undecided(JOB) == []


def test_what_is_there_is_not_sent_again(node: MakeNode, shared: SharedStore, remote: Remote, tmp_path: Path) -> None:
    one = node()
    group = one.group("a")
    source = tmp_path / "source"
    source.write_bytes(data := os.urandom(100_000))
    digest = one.send(group, {"x": data})[0].digest
    source.write_bytes(b"!" * 100_000)  # only who reads it can see that it is damaged
    if not remote.is_directory:  # there, what an earlier process left is read
        told: list[int] = []
        shared.put_data(JOB, group, 0, source, 100_000, digest, told.append)
        assert sum(told) == 100_000
    with pytest.raises(CorruptBlob, match="damaged"):
        shared.put_data(JOB, one.group("b"), 0, source, 100_000, digest)
    assert keys_below(shared, remote) == [f"d/{group}/00000/{digest}"]


def test_a_large_file_goes_in_parts_and_a_damaged_one_never_appears(
    node: MakeNode, shared: SharedStore, remote: Remote, tmp_path: Path
) -> None:
    one = node()
    data = os.urandom(20 << 20)
    (file,) = one.send(one.group("a"), {"big": data})
    part = shared.put_part(one.part("a", [file])).part
    shared.reconcile(JOB, part.group)
    told: list[int] = []
    shared.fetch_file(JOB, file, tmp_path / "out", told.append)
    assert (tmp_path / "out").read_bytes() == data
    assert sum(told) == len(data)
    assert shared.read_range(JOB, file, 9 << 20, (9 << 20) + 10) == data[9 << 20 : (9 << 20) + 10]
    (tmp_path / "bad").write_bytes(data[:-1] + b"x")
    with pytest.raises(CorruptBlob):
        shared.put_data(JOB, one.group("b"), 0, tmp_path / "bad", len(data), file.digest)
    assert not any(key.startswith(f"d/{one.group('b')}") for key in keys_below(shared, remote))


def test_bytes_that_were_damaged_in_the_store_get_no_name(
    node: MakeNode, shared: SharedStore, remote: Remote, tmp_path: Path
) -> None:
    one = node()
    part = one.save("a", {"x": b"right"})
    shared.reconcile(JOB, part.group)
    (file,) = shared.read(JOB, part.group).files
    remote.put(shared.place.key(f"j/{JOB}/{file.key}"), b"wrong")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CorruptBlob, match="x in the object store"):
        shared.fetch_file(JOB, file, out / "x")
    remote.delete([shared.place.key(f"j/{JOB}/{file.key}")])
    with pytest.raises(StorageFailed, match="no longer there"):
        shared.fetch_file(JOB, file, out / "x")
    assert os.listdir(out) == []


def test_a_part_is_not_made_before_its_data_is_there(node: MakeNode, shared: SharedStore, remote: Remote) -> None:
    one = node()
    files = one.send(one.group("a"), {"x": b"12345", "y": b"1"})
    key = shared.place.key(f"j/{JOB}/{files[0].key}")
    remote.put(key, b"1234")
    with pytest.raises(StorageFailed, match="has 4 bytes instead of 5"):
        shared.put_part(one.part("a", files))
    remote.delete([key])
    with pytest.raises(StorageFailed, match="is not there"):
        shared.put_part(one.part("a", files))
    assert shared.undecided(JOB) == []
    assert one.send(one.group("a"), {"x": b"12345"})[0] == files[0]
    assert shared.put_part(one.part("a", files)).ours


def test_a_rank_that_comes_again_finds_its_earlier_part(node: MakeNode, shared: SharedStore) -> None:
    one = node()
    first = one.save("a", {"x": b"1"})
    again = shared.put_part(first)
    assert (again.part, again.ours) == (first, True)
    other = shared.put_part(one.part("a", one.send(first.group, {"x": b"2"})))
    assert (other.part, other.ours) == (first, False)


def test_an_abort_and_a_commit_exclude_each_other(node: MakeNode, shared: SharedStore) -> None:
    one, two = node(0, 2), node(1, 2)
    part = one.save("a", {"x": b"1"})
    standing = shared.abort(JOB, part.group, "rank 1 is gone for good", NS)
    assert (standing.state, standing.decision and standing.decision.reason) == (
        GroupState.ABORTED,
        "rank 1 is gone for good",
    )
    two.save("a", {"y": b"2"})
    assert shared.reconcile(JOB, part.group).state is GroupState.ABORTED
    assert shared.list(JOB) == []
    assert [each.verdict for each in shared.list(JOB, aborted=True)] == ["abort"]
    for each in (one, two):
        each.save("b", {f"{each.rank}": b"1"})
    assert shared.reconcile(JOB, one.group("b")).state is GroupState.REPLICATED
    assert shared.abort(JOB, one.group("b"), "too late", NS).state is GroupState.REPLICATED


def test_of_ranks_that_end_at_once_the_last_one_decides(node: MakeNode, shared: SharedStore) -> None:
    for rank in range(3):
        group = node(rank, 3).save("a", {f"{rank}": b"1"}).group
    for rank in (0, 1):
        assert state_of(shared.reconcile(JOB, group, rank=rank)) == "partial 3/3"
    assert shared.reconcile(JOB, group, rank=2).state is GroupState.REPLICATED
    node(1, 2).save("b", {"1": b"1"})
    group = node(0, 2).save("b", {"0": b"1"}).group
    shared.reconcile(JOB, group, rank=0)
    assert shared.reconcile(JOB, group).state is GroupState.REPLICATED  # whose part came last may have died


def test_of_many_who_decide_at_once_one_wins_and_all_adopt_it(node: MakeNode, shared: SharedStore) -> None:
    """S27: decided once, for all machines."""
    for number in range(6):
        for rank in range(2):
            group = node(rank, 2).save(f"step-{number}", {f"{rank}": b"1"}).group
        seen: list[Decision | None] = []
        all_there = Barrier(8)

        def decide(who: int, group: str = group, all_there: Barrier = all_there, seen: list[Any] = seen) -> None:
            all_there.wait(10)
            if who % 2:
                seen.append(shared.reconcile(JOB, group).decision)
            else:
                seen.append(shared.abort(JOB, group, f"{who} says so", NS).decision)

        run(8, range(8), decide, Stop())
        assert len(seen) == 8
        assert len({written(one) for one in seen if one is not None}) == 1
        assert None not in seen
        assert shared.standing(JOB, group).decision == seen[0]


def test_what_stays_partial_is_reaped_and_what_is_complete_is_decided(node: MakeNode, shared: SharedStore) -> None:
    one, two = node(0, 2), node(1, 2)
    lonely = one.save("lonely", {"x": b"1"})
    for each in (one, two):
        each.save("whole", {f"{each.rank}": b"1"})
    assert [one.state for one in shared.reap(JOB, NS)] == [GroupState.REPLICATED]
    assert state_of(shared.standing(JOB, lonely.group)) == "partial 1/2 (missing rank 1)"
    (reaped,) = shared.reap(JOB, NS, older_than_ns=-DAY_NS)
    assert reaped.decision is not None
    assert (reaped.group, reaped.decision.reason) == (lonely.group, "it stayed partial 1/2 (missing rank 1)")
    two.save("lonely", {"y": b"1"})
    assert shared.reconcile(JOB, lonely.group).state is GroupState.DELETED  # aborted groups are, when they are old


def test_ranks_that_contradict_each_other_abort(node: MakeNode, shared: SharedStore) -> None:
    node(0, 2).save("a", {"x": b"1"})
    node(1, 3).save("a", {"y": b"1"})
    standing = shared.reap(JOB, NS)[0]
    assert standing.state is GroupState.ABORTED
    assert standing.decision is not None
    assert standing.decision.reason == "rank 1 says that there are 3 nodes, rank 0 says 2"


def test_what_is_deleted_is_hidden_at_once_and_goes_after_the_grace(
    node: MakeNode, shared: SharedStore, remote: Remote
) -> None:
    one = node()
    part = one.save("a", {"x": b"1" * 1000, "y": b"2"})
    shared.reconcile(JOB, part.group)
    shared.tombstone(JOB, part.group, NS)
    shared.tombstone(JOB, part.group, NS + 1)
    assert shared.list(JOB) == []
    assert shared.standing(JOB, part.group).state is GroupState.DELETED
    with pytest.raises(UnknownCheckpoint):
        shared.read(JOB, part.group)
    assert shared.delete(JOB, [part.group]) == []
    assert f"c/{part.group}.json" in keys_below(shared, remote)
    for _ in range(2):
        assert shared.delete(JOB, [part.group], grace_ns=-DAY_NS) == [part.group]
        assert keys_below(shared, remote) == [f"x/{part.group}.json"]
    one.save("a", {"x": b"1" * 1000})
    assert shared.reconcile(JOB, part.group).state is GroupState.DELETED
    assert shared.undecided(JOB) == []


def test_data_that_another_part_names_stays_until_that_one_goes(
    node: MakeNode, shared: SharedStore, remote: Remote, tmp_path: Path
) -> None:
    one = node()
    first = one.save("step-1", {"frozen": b"f" * 1000, "head": b"1"})
    shared.reconcile(JOB, first.group)
    frozen = first.files[0]
    new = one.send(one.group("step-2"), {"head": b"2"})
    second = shared.put_part(one.part("step-2", [frozen, *new])).part
    standing = shared.reconcile(JOB, second.group)
    assert standing.decision is not None
    assert standing.decision.borrowed == (first.group,)
    shared.tombstone(JOB, first.group, NS)
    assert shared.delete(JOB, [first.group], grace_ns=-DAY_NS) == [first.group]
    assert [key for key in keys_below(shared, remote) if key.startswith("d/")] == [frozen.key, new[0].key]
    assert bytes_of(shared, second.group, tmp_path / "out") == {"frozen": b"f" * 1000, "head": b"2"}
    with pytest.raises(Withdrawn) as raised:
        shared.put_part(one.part("step-3", [frozen]))
    assert raised.value.groups == {first.group}
    assert shared.reusable(JOB, {first.group, second.group}) == {second.group}
    shared.tombstone(JOB, second.group, NS)
    shared.delete(JOB, [second.group], grace_ns=-DAY_NS)
    assert keys_below(shared, remote) == [f"x/{first.group}.json", f"x/{second.group}.json"]


def test_data_that_an_undecided_part_names_stays(node: MakeNode, shared: SharedStore, remote: Remote) -> None:
    first = node(0, 1).save("step-1", {"frozen": b"f" * 1000})
    shared.reconcile(JOB, first.group)
    node(0, 2).save("step-2", {})
    shared.put_part(node(0, 2, "1").part("step-2", [first.files[0]]))
    shared.tombstone(JOB, first.group, NS)
    shared.delete(JOB, [first.group], grace_ns=-DAY_NS)
    assert first.files[0].key in keys_below(shared, remote)


def test_what_nobody_comes_back_for_is_given_back(node: MakeNode, shared: SharedStore, remote: Remote) -> None:
    one = node()
    orphan = one.group("orphan")
    one.send(orphan, {"x": b"1"})
    lonely = node(0, 2).save("lonely", {"x": b"2"})
    kept = one.save("kept", {"x": b"3"})
    shared.reap(JOB, NS)
    assert any(key.startswith(f"d/{orphan}") for key in keys_below(shared, remote))
    for _ in range(3):  # aborted, then buried, then taken away
        shared.reap(JOB, NS, older_than_ns=-DAY_NS)
    assert shared.standing(JOB, orphan).state is shared.standing(JOB, lonely.group).state is GroupState.DELETED
    assert any(key.startswith(f"d/{orphan}") for key in keys_below(shared, remote))  # within the grace
    assert shared.delete(JOB, [orphan, lonely.group], grace_ns=-DAY_NS) == [orphan, lonely.group]
    assert {key.split("/")[1].removesuffix(".json") for key in keys_below(shared, remote) if key[0] != "x"} == {
        kept.group
    }


def test_a_deletion_that_was_interrupted_is_gone_on_with(
    node: MakeNode, shared: SharedStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    for point in ("decision", "data", "parts"):
        part = one.save(point, {"x": b"1"})
        shared.reconcile(JOB, part.group)
        shared.tombstone(JOB, part.group, NS)

        def die(reached: str, point: str = point) -> None:
            if reached == f"share:delete:{point}":
                raise Crash(reached)

        with faults.install(die), pytest.raises(Crash):
            shared.delete(JOB, [part.group], grace_ns=-DAY_NS)
        assert shared.list(JOB) == []
        assert shared.standing(JOB, part.group).state is GroupState.DELETED
    monkeypatch.setattr(removing, "GRACE_NS", -DAY_NS)
    shared.reap(JOB, NS)
    assert all(key[0] == "x" for key in keys_below(shared, remote))
    monkeypatch.setattr(removing, "TOMBSTONE_NS", -DAY_NS)
    shared.reap(JOB, NS)
    assert keys_below(shared, remote) == []


def test_a_store_that_ignores_conditions_is_for_one_owner(shared: SharedStore, remote: Remote) -> None:
    place = type(shared.place)(shared.place.bucket, shared.place.prefix + "-exclusive")
    mine, other = SharedStore(remote, place, owner="me"), SharedStore(remote, place, owner="you")
    with pytest.raises(StorageFailed, match="cannot share such a store; use another, or --exclusive"):
        mine.establish(probed(place, winners=16), NS)
    assert mine.establish(probed(place, winners=16), NS, exclusive=True).exclusive
    with pytest.raises(StorageFailed, match="exclusive use of me"):
        other.open()
    assert other.list(JOB) == []
    with pytest.raises(StorageFailed, match="exclusive use of me"):
        other.tombstone(JOB, "000000000001-0123456789abcdef", NS)
    assert established(mine).open() == mine.open()


def test_only_an_empty_place_becomes_a_shared_store(shared: SharedStore, remote: Remote) -> None:
    def below(name: str) -> SharedStore:
        return SharedStore(remote, type(shared.place)(shared.place.bucket, f"{shared.place.prefix}-{name}"))

    with pytest.raises(NotFound, match="holds no shared store"):
        below("none").open()
    remote.put(below("taken").place.key("model.safetensors"), b"x")
    with pytest.raises(UsageError, match=r"holds other things \(.*model.safetensors\)"):
        established(below("taken"))
    remote.put(below("export").place.key("fuse-ckpt.json"), b'{\n "format": 1,\n "blake3": "",\n "export": {}}')
    with pytest.raises(UsageError, match="holds an export"):
        established(below("export"))
    remote.put(below("damaged").place.key("fuse-ckpt.json"), b"{}\n")
    with pytest.raises(Corrupt, match="nothing that fuse-ckpt wrote"):
        established(below("damaged"))


def test_a_damaged_decision_hides_itself_alone(node: MakeNode, shared: SharedStore, remote: Remote) -> None:
    one = node()
    good, bad = one.save("good", {"x": b"1"}), one.save("bad", {"x": b"2"})
    for part in (good, bad):
        shared.reconcile(JOB, part.group)
    remote.put(shared.place.key(f"j/{JOB}/c/{bad.group}.json"), b"garbage")
    assert [one.id for one in shared.list(JOB)] == [good.local]
    assert len(shared.problems) == 1
    assert "nothing that fuse-ckpt wrote" in shared.problems[0]
    with pytest.raises(Corrupt):
        shared.reconcile(JOB, bad.group)


def test_a_damaged_part_aborts_its_group_in_the_end(node: MakeNode, shared: SharedStore, remote: Remote) -> None:
    part = node(0, 2).save("a", {"x": b"1"})
    remote.put(shared.place.key(f"j/{JOB}/p/{part.group}/00000.json"), b"garbage")
    assert shared.reap(JOB, NS) == []
    (reaped,) = shared.reap(JOB, NS, older_than_ns=-DAY_NS)
    assert reaped.decision is not None
    assert "is nothing that fuse-ckpt wrote, or is damaged" in reaped.decision.reason


@pytest.mark.parametrize("job", ["a b", "100%", "%41", "na\u00efve=1", "\u8a13\u7df4", "a\\b", "x#1", "what?", "*"])
def test_jobs_of_any_name_are_found_again(shared: SharedStore, tmp_path: Path, job: str) -> None:
    group = group_of(job, "0", "a", 1)
    (tmp_path / "source").write_bytes(b"1")
    digest = "d63bd9a826af91c1fea371965a64e11ee20f13e46b5f52c59901136605b3a487"
    shared.put_data(job, group, 0, tmp_path / "source", 1, digest)
    shared.abort(job, group, "only to be seen", NS)
    assert shared.jobs() == [job]
    assert [one.group for one in shared.list(job, aborted=True)] == [group]


def test_a_listing_asks_for_each_decision_once(
    node: MakeNode, shared: SharedStore, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = node()
    parts = [one.save(f"step-{n}", {"x": b"1"}) for n in range(5)]
    for part in parts:
        shared.reconcile(JOB, part.group)

    def listed() -> tuple[list[str], int]:
        with counted(monkeypatch) as asked:
            found = SharedStore(remote, shared.place, cache=tmp_path / "cache").list(JOB)
        return [one.id for one in found], sum("/c/" in key for key in asked)

    ids = [part.local for part in parts]
    assert listed() == (ids, 5)
    assert listed() == (ids, 0)
    shared.tombstone(JOB, parts[0].group, NS)
    shared.delete(JOB, [parts[0].group], grace_ns=-DAY_NS)
    assert listed() == (ids[1:], 0)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"damaged")
    assert listed() == (ids[1:], 4)


def test_a_pack_spares_a_new_machine_the_single_requests(
    node: MakeNode, shared: SharedStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "WORTH", 3)
    one = node()
    parts = [one.save(f"step-{n}", {}) for n in range(3)]
    shared.reap(JOB, NS)  # decides them, and packs the decisions
    (pack,) = keys_below(shared, remote, "s")
    parts.append(one.save("step-3", {}))
    shared.reconcile(JOB, parts[3].group)
    with counted(monkeypatch) as asked:
        assert [one.id for one in shared.list(JOB)] == [part.local for part in parts]
    assert [key.rpartition("/")[2] for key in asked if "/c/" in key] == [f"{parts[3].group}.json"]
    remote.put(shared.place.key(f"j/{JOB}/{pack}"), b"damaged")
    assert [one.id for one in shared.list(JOB)] == [part.local for part in parts]
    shared.reap(JOB, NS)
    for part in parts:
        shared.tombstone(JOB, part.group, NS)
    shared.delete(JOB, [part.group for part in parts], grace_ns=-DAY_NS)
    shared.reap(JOB, NS)
    assert keys_below(shared, remote, "s") == [pack]  # it cannot be read, and is left alone


def test_whoever_had_to_ask_for_many_spares_it_the_next_one(
    node: MakeNode, shared: SharedStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "WORTH", 3)
    one = node()
    ids = []
    for number in range(4):
        part = one.save(f"step-{number}", {})
        shared.reconcile(JOB, part.group)
        ids.append(part.local)
    damaged = shared.place.key(f"j/{JOB}/c/{one.group('step-9')}.json")
    for what in (b"{}", b"\xff\xfe"):
        remote.put(damaged, what)
        found = SharedStore(remote, shared.place)
        assert [decision.id for decision in found.list(JOB)] == ids
    assert len(keys_below(shared, remote, "s")) == 1
    remote.delete([damaged])
    with counted(monkeypatch) as asked:
        assert [decision.id for decision in SharedStore(remote, shared.place).list(JOB)] == ids
    assert [key for key in asked if "/c/" in key] == []


def test_packs_that_many_made_at_once_become_few(
    node: MakeNode, shared: SharedStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "WORTH", 1)
    one = node()
    texts = {}
    for number in range(4):
        part = one.save(f"step-{number}", {})
        shared.reconcile(JOB, part.group)
        data = remote.get(shared.place.key(f"j/{JOB}/c/{part.group}.json"), 1 << 20)
        assert data is not None
        texts[part.group] = data.decode()
    groups = sorted(texts)
    for some in (groups, groups[:3], groups[1:], groups[:1]):
        made = written(Pack({group: texts[group] for group in some}))
        remote.put(shared.place.key(f"j/{JOB}/s/{blake3(made).hexdigest(length=16)}.json"), made)
    assert len(keys_below(shared, remote, "s")) == 4
    shared.reap(JOB, NS)
    assert len(keys_below(shared, remote, "s")) == 1
    with counted(monkeypatch) as asked:
        assert len(SharedStore(remote, shared.place).list(JOB)) == 4
    assert [key for key in asked if "/c/" in key] == []


def test_whoever_may_only_read_lists_all_the_same(
    seaweed: Seaweed, place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packing, "WORTH", 1)
    remote = seaweed.remote()
    shared = established(SharedStore(remote, place))
    one = Node(shared, tmp_path / "node")
    part = one.save("a", {})
    shared.reconcile(JOB, part.group)
    reader = SharedStore(seaweed.remote(file=seaweed.reader), place)
    assert [decision.id for decision in reader.list(JOB)] == [part.local]
    assert keys_below(shared, remote, "s") == []


def test_names_of_any_bytes_come_back(node: MakeNode, shared: SharedStore, remote: Remote, tmp_path: Path) -> None:
    one = node()
    name = "step_1\udcff"
    files = [
        *one.send(one.group(name), {"caf\u00e9\udce9": b"1"}),
        PartFile.of(Entry("link\udc80", Kind.SYMLINK, 0o777, NS, target="caf\u00e9\udce9")),
        PartFile.of(Entry("d", Kind.DIRECTORY, 0o755, NS)),
    ]
    part = shared.put_part(one.part(name, files)).part
    assert part.files == tuple(files)
    standing = shared.reconcile(JOB, part.group)
    assert standing.decision is not None
    assert standing.decision.name == name
    found = SharedStore(remote, shared.place, cache=tmp_path / "cache")
    assert [one.name for one in found.list(JOB)] == [one.name for one in found.list(JOB)] == [name]
    assert {file.path for file in found.read(JOB, part.group).files} == {file.path for file in files}
