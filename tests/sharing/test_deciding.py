"""What follows from parts: the same for everybody, whatever they look like."""

from __future__ import annotations

import itertools
import json
from uuid import UUID

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fuse_ckpt.errors import Corrupt, FuseCkptError
from fuse_ckpt.model import Kind, Metadata, Shape
from fuse_ckpt.sharing import (
    Decision,
    GroupState,
    Missing,
    Part,
    PartFile,
    Standing,
    check_group,
    decide,
    group_of,
    state_of,
    union_of,
)
from fuse_ckpt.sharing.documents import understood, written
from fuse_ckpt.sharing.keys import data_key, job_of, job_prefix, source_of

GOLDEN = "000000000500-80ae94b168c31b78"
LOCAL = "01890a5d-ac96-774b-bcce-b302099a8057"
GROUP = group_of("job", "0", "step_1", 1)

names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
job_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


def file(path: str, data: bytes = b"x", group: str = GROUP, rank: int = 0) -> PartFile:
    digest = blake3(data).hexdigest()
    return PartFile(path, Kind.FILE, 0o644, 1, len(data), digest, key=data_key(group, rank, digest) if data else "")


def part(rank: int, nodes: int, *files: PartFile, **more: object) -> Part:
    fields: dict[str, object] = {"companions": (), "metadata": Metadata(), "sealed_ns": rank, **more}
    return Part(
        "job", GROUP, rank, nodes, "step_1", Shape.DIRECTORY, 1, "0", f"n{rank}", LOCAL, created_ns=1, files=files,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def gathered(*parts: Part) -> dict[int, tuple[Part, str]]:
    return {each.rank: (each, blake3(written(each)).hexdigest()) for each in parts}


def decided(*parts: Part) -> Decision:
    found = decide(gathered(*parts))
    assert isinstance(found, Decision)
    return found


@given(nodes=st.integers(1, 5), order=st.randoms(use_true_random=False), data=st.data())
@settings(max_examples=60)
def test_whoever_decides_writes_the_same_bytes(nodes: int, order: object, data: st.DataObject) -> None:
    present = data.draw(st.sets(st.integers(0, nodes - 1)))
    parts = [part(rank, nodes, file(f"{rank}", bytes([rank]), rank=rank)) for rank in present]
    bodies = set()
    for ordered in itertools.islice(itertools.permutations(parts), 6):
        found = decide(gathered(*ordered))
        if len(present) < nodes:
            assert found == Missing(nodes if present else 0, tuple(sorted(set(range(nodes)) - present)) * bool(present))
        else:
            assert isinstance(found, Decision)
            assert found.committed
            bodies.add(written(found))
    assert len(bodies) == (len(present) == nodes)


def test_the_id_is_the_writers_own_for_one_node_and_everybodys_for_more() -> None:
    assert decided(part(0, 1, file("x"))).id == LOCAL
    pair = [part(0, 2, sealed_ns=1_700_000_000_123 * 10**6), part(1, 2, sealed_ns=1)]
    shared = UUID(decided(*pair).id)
    assert (shared.version, shared.variant) == (7, UUID(LOCAL).variant)
    assert shared.int >> 80 == 1_700_000_000_123
    assert str(shared) != decided(pair[0], replace(pair[1], node="other")).id


def test_the_lowest_rank_counts_where_ranks_differ() -> None:
    parts = [
        part(0, 2, file("same", b"1"), file("latest", b"a"), companions=(file("log", b"0"),)),
        part(1, 2, file("same", b"1", rank=1), file("latest", b"b", rank=1), companions=(file("log", b"1", rank=1),)),
    ]
    union = union_of(decided(*parts), parts[::-1])
    assert [(one.path, one.digest) for one in union.files] == [
        ("latest", blake3(b"a").hexdigest()),
        ("same", blake3(b"1").hexdigest()),
    ]
    assert union.overlaps == ("latest", "log")
    assert (union.decision.files, union.decision.size) == (2, 2)


def test_what_no_directory_could_hold_is_aborted() -> None:
    found = decided(part(0, 2, file("a")), part(1, 2, file("a/b", rank=1)))
    assert (found.verdict, found.reason) == ("abort", "'a' is a directory to rank 1, and none to rank 0")
    directory = PartFile("a", Kind.DIRECTORY, 0o755, 1)
    assert not decided(part(0, 2, directory), part(1, 2, file("a", rank=1))).committed
    assert decided(part(0, 2, directory), part(1, 2, file("a/b", rank=1))).committed


def test_what_one_rank_needs_of_another_must_be_there() -> None:
    first = part(0, 2, file(".metadata"), awaits={"__1_0.distcp": 3, "__1_1.distcp": 0})
    second = part(1, 2, file("__1_0.distcp", b"xxx", rank=1), file("__1_1.distcp", rank=1), awaits={".metadata": 0})
    assert decided(first, second).committed
    cut = replace(second, files=(file("__1_0.distcp", b"xx", rank=1), *second.files[1:]))
    assert decided(first, cut).reason == "rank 0 says that '__1_0.distcp' has 3 bytes, it has 2"
    lacking = decided(first, replace(second, files=second.files[:1]))
    assert lacking.reason == "rank 0 has files that need '__1_1.distcp', which no rank has written"
    assert "rank 1 has files that need '.metadata'" in decided(part(0, 2, file("x")), second).reason


def test_what_is_needed_is_told_with_the_part() -> None:
    mine = part(0, 2, file(".metadata"), awaits={"a/\udcff": 7})
    assert understood(written(mine), Part, "it") == mine
    assert "awaits" not in written(part(0, 1, file("x"))).decode(), "as it was before parts told it"


def test_ranks_that_do_not_agree_are_aborted_at_once() -> None:
    found = decided(part(0, 3), replace(part(1, 3), shape=Shape.FLAT))
    assert found.reason == "rank 1 wrote a flat checkpoint, rank 0 a directory one"
    assert "4 nodes" in decided(part(0, 3), part(1, 4)).reason


def test_metadata_is_what_the_lowest_rank_says_that_says_it() -> None:
    said = [
        Metadata(step=5, notes=("a",)),
        Metadata(step=6, train_loss=0.5, resumable=True, notes=("a", "b"), format="safetensors"),
    ]
    found = decided(*(part(rank, 2, metadata=one) for rank, one in enumerate(said))).metadata
    assert found == Metadata(step=5, train_loss=0.5, resumable=True, notes=("a", "b"), format="safetensors")


def test_borrowed_groups_are_named() -> None:
    earlier = group_of("job", "0", "step_0", 1)
    assert decided(part(0, 1, file("x", group=earlier), file("y"))).borrowed == (earlier,)


def test_states_are_said_in_words() -> None:
    partial = Standing(GROUP, GroupState.PARTIAL, 4, (0, 1, 3))
    assert state_of(partial) == "partial 3/4 (missing rank 2)"
    assert state_of(replace(partial, nodes=9)) == "partial 3/9 (missing ranks 2, 4, 5, 6, 7, …)"
    assert state_of(replace(partial, present=(0, 1, 2, 3))) == "partial 4/4"
    assert state_of(Standing(GROUP, GroupState.REPLICATED)) == "replicated"


def test_a_group_is_named_by_its_number_and_by_all_that_it_is_of() -> None:
    found = {
        group_of(job, attempt, name, generation)
        for job in ("a", "ab")
        for attempt in ("", "b", "bc")
        for name in ("step_7", "cstep_7")
        for generation in (1, 2)
    }
    assert len(found) == 24
    assert all(group.startswith("000000000007-") for group in found)
    assert group_of("a", "0", "model.pt", 3).startswith("000000000003-")
    assert group_of("a", "0", f"x-{'9' * 40}", 3).startswith("000000000003-")
    assert group_of("j", "0", "step_1", 1) == "000000000001-" + group_of("j", "0", "step_1", 1)[13:]
    assert sorted(group_of("j", "0", f"step_{n}", 1) for n in (10, 9, 100)) == [
        group_of("j", "0", f"step_{n}", 1) for n in (9, 10, 100)
    ]


def test_the_names_of_groups_never_change() -> None:
    """Machines with other versions have to compute the same."""
    assert group_of("llama", "0", "checkpoints/step_500", 1) == GOLDEN


@given(job_names)
def test_jobs_have_a_prefix_of_their_own(job: str) -> None:
    try:
        prefix = job_prefix(job)
    except FuseCkptError:
        return
    assert prefix.count("/") == 1
    assert job_of(prefix.removeprefix("j/")) == job


def test_only_names_of_ours_are_names() -> None:
    for group in ("", "../x", "1-0123456789abcdef", "000000000001-0123456789ABCDEF", GROUP + "\n"):
        with pytest.raises(Corrupt):
            check_group(group)
    for key in ("", f"d/{GROUP}/0/{'0' * 64}", f"../d/{GROUP}/00000/{'0' * 64}", f"d/{GROUP}/00000/../../x"):
        with pytest.raises(Corrupt):
            source_of(key)
    assert source_of(data_key(GROUP, 3, "0" * 64)) == (GROUP, 3, "0" * 64)
    assert job_of("..") is None
    assert job_of("%41") is None


@given(paths=st.lists(paths, unique=True, max_size=4), loss=st.floats(), step=st.none() | st.integers(0, 2**62))
@settings(max_examples=60)
def test_a_part_comes_back_as_it_was_written(paths: list[str], loss: float, step: int | None) -> None:
    files = [file(path) for path in paths if not any(other.startswith(path + "/") for other in paths)]
    mine = part(0, 1, *files, metadata=Metadata(step=step, train_loss=loss))
    finite = loss == loss and abs(loss) != float("inf")
    kept = mine if finite else replace(mine, metadata=Metadata(step=step))
    assert understood(written(mine), Part, "it") == kept


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused_in_words(data: bytes) -> None:
    for kind in (Part, Decision):
        with pytest.raises(Corrupt, match=r"^it "):
            understood(data, kind, "it")


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(at: int, bit: int) -> None:
    data = bytearray(written(part(0, 1, file("x"))))
    at %= len(data) - 1  # the last line's end says nothing
    data[at] ^= 1 << bit
    with pytest.raises(Corrupt):
        understood(bytes(data), Part, "it")


def resealed(change: dict[str, object]) -> bytes:
    """A part with some fields replaced, and a right checksum: what somebody hostile would write."""
    body = json.loads(written(part(0, 1, file("x"))).split(b"\n")[1]) | change
    data = json.dumps(body).encode()
    head = {"format": 1, "kind": "part", "blake3": blake3(data).hexdigest()}
    return json.dumps(head).encode() + b"\n" + data + b"\n"


HOSTILE_FILES: list[dict[str, object]] = [
    {},
    {"path": "../x"},
    {"path": "/x"},
    {"digest": "0" * 64, "key": "d/../../x"},
    {"digest": "0" * 64, "key": data_key(GROUP, 0, "1" * 64)},
    {"digest": "0" * 64, "key": data_key(GROUP, 1, "0" * 64)},
    {"digest": "zz"},
    {"size": -1},
    {"size": 0, "digest": "0" * 64},
    {"mode": 1 << 40},
    {"kind": "fifo"},
    {"kind": "symlink", "target": "y"},
    {"kind": "symlink", "size": 0, "target": "a\0b"},
    {"kind": "directory", "size": 0, "target": "y"},
]
HOSTILE: list[dict[str, object]] = [
    {"group": "../../x"},
    {"rank": -1},
    {"rank": 1},
    {"nodes": 10**9},
    {"generation": 2},
    {"local": ""},
    {"local": "../../etc/passwd"},
    {"sealed_ns": -1},
    {"sealed_ns": 10**30},
    {"metadata": []},
    {"files": {}},
    {"node": "x" * 1000},
    {"files": [{"path": "x", "kind": "directory", "mode": 1, "mtime_ns": 1}] * 2},
]
HOSTILE += [
    {"files": [{"path": "x", "kind": "file", "mode": 420, "mtime_ns": 1, "size": 1, **bad}]} for bad in HOSTILE_FILES
]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_a_part_that_leads_anywhere_is_refused(change: dict[str, object]) -> None:
    assert understood(resealed({}), Part, "it") == part(0, 1, file("x"))
    with pytest.raises(Corrupt, match=r"^(it|.* names no|The checkpoint's manifest)"):
        understood(resealed(change), Part, "it")


def test_depth_and_newer_formats_are_refused() -> None:
    deep = b"[" * 100_000
    for data in (deep, b'{"format":1,"kind":"part","blake3":"%s"}\n' % blake3(deep).hexdigest().encode() + deep):
        with pytest.raises(Corrupt):
            understood(data, Part, "it")
    with pytest.raises(Corrupt, match="a newer fuse-ckpt reads it"):
        understood(written(part(0, 1)).replace(b'"format":1', b'"format":2', 1), Part, "it")
    with pytest.raises(Corrupt, match="checksum"):
        understood(written(part(0, 1)), Decision, "it")


def test_a_commit_tells_of_each_rank() -> None:
    found = decided(part(0, 2), part(1, 2))
    for broken in (replace(found, parts=found.parts[:1]), replace(found, id=""), replace(found, nodes=0, parts=())):
        with pytest.raises(Corrupt, match="commits what it does not tell of"):
            understood(written(broken), Decision, "it")
