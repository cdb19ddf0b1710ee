from __future__ import annotations

import json
from typing import Any, cast

import pytest
from msgspec.structs import replace

from fuse_ckpt.cli import render
from fuse_ckpt.cli.ancestry import Ancestry
from fuse_ckpt.cli.lineage import Drawing, document
from fuse_ckpt.model import Checkpoint, Job, Metadata, Provenance, Run, RunStatus, Shape, State
from fuse_ckpt.store import Store, codec, tables

PUSHED = ""  # the job of pushed checkpoints
HERE = Provenance("box", "anna", "/home/anna", "4f2a1b9c" * 5, True, {"python": "3.11", "torch": "2.13.0"})


class Family:
    """Runs and what they saved, on the shelf's store. Times go up by a second with each run."""

    def __init__(self, shelf: Any) -> None:
        self._shelf = shelf
        self._clock = 0

    def run(self, job: str, saves: int, parent: str | None = None, provenance: Provenance | None = HERE) -> list[str]:
        """A run of `job` that was resumed from `parent`: the ids of its checkpoints."""
        store = self._shelf.store
        self._clock += 1
        store.ensure_job(job, self._clock)
        command = ["python", "train.py", "--note", "a b"]
        run = store.begin_run(job, command, self._clock * 10**9, parent=parent, provenance=provenance)
        made = [self.save(job, run.id, parent, step) for step in range(1, saves + 1)]
        store.end_run(run, self._clock * 10**9 + 1, 0, RunStatus.SUCCEEDED)
        return made

    def save(self, job: str, run: str | None, parent: str | None, step: int = 1) -> str:
        said = Metadata(step=step, train_loss=1 / step, resumable=True, weights=True)
        files = {"ckpt.pt": f"{job} {run} {step}".encode()}
        found: str = self._shelf.put("ckpt.pt", files, job=job, run=run, parent=parent, metadata=said).id
        return found


@pytest.fixture
def family(shelf: Any) -> Family:
    return Family(shelf)


def test_a_chain_of_runs_goes_straight_down(program: Any, family: Family) -> None:
    first = family.run("digits", 2)
    second = family.run("digits-2", 1, first[1])
    result = program("checkpoint", "lineage", second[0])
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "● digits: python train.py --note 'a b'",
        "│ 1970-01-01 00:00:01 +0000 UTC · succeeded · anna@box · git 4f2a1b9c4f2a (modified)",
        f"├─ {first[0][-8:]} ckpt.pt@1 · step 1 · loss 1",
        f"├─ {first[1][-8:]} ckpt.pt@2 · step 2 · loss 0.5",
        "● digits-2: python train.py --note 'a b'",
        "│ 1970-01-01 00:00:02 +0000 UTC · succeeded · anna@box · git 4f2a1b9c4f2a (modified)"
        f" · resumed from {first[1][-8:]}",
        f"└─ {second[0][-8:]} ckpt.pt@1 · step 1 · loss 1 ◀",
    ]


def test_a_branch_is_drawn_below_the_checkpoint_that_it_came_from(program: Any, family: Family) -> None:
    trunk = family.run("trunk", 3)
    aside = family.run("aside", 1, trunk[0])
    family.run("onward", 1, trunk[2])
    lines = program("checkpoint", "lineage", trunk[1]).out.splitlines()
    assert [line.split(" · ")[0] for line in lines if "1970" not in line] == [
        "● trunk: python train.py --note 'a b'",
        f"├─ {trunk[0][-8:]} ckpt.pt@1",
        "│  ● aside: python train.py --note 'a b'",
        f"│  └─ {aside[0][-8:]} ckpt.pt@1",
        f"├─ {trunk[1][-8:]} ckpt.pt@2",
        f"├─ {trunk[2][-8:]} ckpt.pt@3",
        "● onward: python train.py --note 'a b'",
        lines[-1].split(" · ")[0],
    ]
    assert [line for line in lines if line.endswith("◀")] == [lines[6]]


def test_of_many_checkpoints_those_are_shown_that_matter(program: Any, family: Family) -> None:
    made = family.run("digits", 30)
    family.run("next", 0, made[20])
    shown = [line for line in program("checkpoint", "lineage", made[10]).out.splitlines() if line.startswith("├")]
    assert [line.split()[1] for line in shown] == [
        *(made[0][-8:], "…", made[10][-8:], "…", made[20][-8:], "…", made[29][-8:])
    ]
    assert shown[1] == "├─ … 9 more"
    everything = program("checkpoint", "lineage", made[10], "--all").out
    assert all(one[-8:] in everything for one in made)


def test_a_parent_that_was_deleted_is_shown_as_deleted(program: Any, shelf: Any, family: Family) -> None:
    first = family.run("digits", 1)
    second = family.run("digits-2", 1, first[0])
    shelf.store.delete([first[0]])
    assert f"{first[0][-8:]} ckpt.pt@1 · step 1 · loss 1 · deleted" in program("checkpoint", "lineage", second[0]).out


def test_a_parent_of_which_nothing_is_left_joins_what_came_of_it(program: Any, family: Family) -> None:
    gone = "0197f6a2-0000-7000-8000-000000000001"
    one, other = family.run("one", 1, gone), family.run("other", 1, gone)
    lines = program("checkpoint", "lineage", one[0]).out.splitlines()
    assert lines[0] == f"○ {gone} (deleted)"
    assert [line for line in lines if line.startswith("●")] == [
        "● one: python train.py --note 'a b'",
        "● other: python train.py --note 'a b'",
    ]
    document = json.loads(program("checkpoint", "lineage", other[0], "--json").out)
    assert [run["parentStatus"] for run in document["runs"]] == ["deleted", "deleted"]


def test_a_cycle_of_foreign_records_ends(program: Any, shelf: Any, family: Family) -> None:
    first = family.run("a", 1)
    second = family.run("b", 1, first[0])
    (run,) = shelf.store.runs("a")
    shelf.store.end_run(replace(run, parent=second[0]), 5, 0, RunStatus.SUCCEEDED)
    result = program("checkpoint", "lineage", first[0])
    assert result.code == 0
    assert result.out.count("●") == 2
    assert len(json.loads(program("checkpoint", "lineage", second[0], "--json").out)["runs"]) == 2


class Chain:
    """A store of one job whose every run saved one checkpoint, and was resumed from the one of the run before."""

    def __init__(self, length: int) -> None:
        ids = [f"0197f6a2-0000-7000-8000-{n:012}" for n in range(length)]
        self.found = [checkpoint_of(n, ids[n], ids[n - 1] if n else None) for n in range(length)]
        self._runs = [
            Run(f"run-{n}", "digits", ("train",), n, RunStatus.SUCCEEDED, parent=one.parent)
            for n, one in enumerate(self.found)
        ]

    def jobs(self) -> list[Job]:
        return [Job("digits", 0)]

    def runs(self, job: str) -> list[Run]:
        return self._runs

    def checkpoints(self, job: str | None = None, states: object = None) -> list[Checkpoint]:
        return self.found

    def checkpoint(self, checkpoint: str) -> Checkpoint:
        return self.found[int(checkpoint[-12:])]

    def job_locked(self, job: str) -> bool:
        return False


def checkpoint_of(number: int, identity: str, parent: str | None) -> Checkpoint:
    return Checkpoint(
        *(identity, "digits", "ckpt.pt", Shape.FLAT, number + 1, "0", State.AVAILABLE, number, number, 1, 1),
        metadata=Metadata(step=number),
        parent=parent,
        run=f"run-{number}",
    )


def test_a_job_that_was_resumed_a_thousand_times_is_no_deep_recursion_and_goes_straight_down() -> None:
    chain = Chain(2000)
    ancestry = Ancestry(cast(Store, chain))
    found = chain.found[1500]
    roots = ancestry.tree(ancestry.branch_of(found))
    lines = list(Drawing(ancestry, found, everything=False).lines(roots))
    assert sum(line.startswith("● ") for line in lines) == 2000
    assert [line for line in lines if line.endswith("◀")] == [f"├─ {found.id[-8:]} ckpt.pt@1501 · step 1500 ◀"]
    runs = json.loads(render.to_json(document(ancestry, found, roots)))["runs"]
    assert [run["parentID"] for run in runs] == [one.parent for one in chain.found]


def test_what_was_saved_by_hand_is_a_branch_of_its_own(program: Any, shelf: Any, family: Family) -> None:
    first = family.run("digits", 1)
    shelf.store.ensure_job("by-hand", 1)
    mine = family.save("by-hand", None, first[0])
    lines = program("checkpoint", "lineage", first[0]).out.splitlines()
    assert lines[-3:-1] == ["● by-hand: (mounted by hand)", f"│ resumed from {first[0][-8:]}"]
    assert mine[-8:] in lines[-1]


def test_of_jobs_that_were_mounted_by_hand_only_what_was_resumed_is_read(
    program: Any, shelf: Any, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = family.run("digits", 1)
    for job in ("by-hand", *(f"other-{number}" for number in range(5))):
        shelf.store.ensure_job(job, 1)
        for _ in range(10):
            family.save(job, None, first[0] if job == "by-hand" else None)
    read: list[str] = []

    def counted(key: bytes, record: bytes, kind: type, describe: Any) -> Any:
        found: object = codec.unseal(key, record, kind, describe)
        read.extend([found.job] if isinstance(found, Checkpoint) else [])
        return found

    monkeypatch.setattr(tables, "unseal", counted)
    assert "by-hand" in program("checkpoint", "lineage", first[0]).out
    assert set(read) == {"digits", "by-hand"}


def test_a_pushed_checkpoint_is_a_root_of_its_own(program: Any, shelf: Any, family: Family) -> None:
    pushed, _ = shelf.put("base", {"a": b"1"}, job=PUSHED), shelf.put("other", {"a": b"2"}, job=PUSHED)
    family.run("digits", 1, pushed.id)
    lines = program("checkpoint", "lineage", pushed.id).out.splitlines()
    assert [line for line in lines if line.startswith("●")] == ["● (pushed)", "● digits: python train.py --note 'a b'"]
    assert f"├─ {pushed.id[-8:]} base@1 · step 10 ◀" in lines
    assert "other" not in "".join(lines)


def test_a_run_whose_record_is_lost_still_has_its_checkpoints(program: Any, shelf: Any, family: Family) -> None:
    found = family.save("digits", "0197f6a2-0000-7000-8000-00000000000f", None)
    result = program("checkpoint", "lineage", found)
    assert result.code == 0
    assert found[-8:] in result.out


def test_json_has_the_runs_parents_first_with_where_they_came_from(program: Any, family: Family) -> None:
    first = family.run("digits", 2)
    second = family.run("digits-2", 1, first[1], provenance=None)
    document = json.loads(program("checkpoint", "lineage", first[0], "--json").out)
    assert document["id"] == first[0]
    one, other = document["runs"]
    assert (one["job"], one["parentID"], one["parentStatus"], one["command"][:2]) == (
        *("digits", None, None),
        ["python", "train.py"],
    )
    assert one["provenance"] == {
        "host": "box",
        "user": "anna",
        "directory": "/home/anna",
        "revision": HERE.revision,
        "dirty": True,
        "versions": {"python": "3.11", "torch": "2.13.0"},
    }
    assert [saved["id"] for saved in one["checkpoints"]] == first
    assert (other["parentID"], other["parentStatus"]) == (first[1], "available")
    assert "provenance" not in other
    assert [saved["id"] for saved in other["checkpoints"]] == second


def test_a_hostile_command_and_name_reach_no_terminal_raw(program: Any, shelf: Any) -> None:
    shelf.store.ensure_job("digits", 1)
    where = Provenance(host="h\x1b[2J", user="u\n", revision="r\x07" * 9)
    run: Run = shelf.store.begin_run("digits", ["x\x1b]0;owned\x07", "\n"], 1, provenance=where)
    found = shelf.put("name\x9b2J\n", run=run.id)
    for form in ((), ("--json",)):
        out = program("checkpoint", "lineage", found.id, *form).out
        assert all(char == "\n" or char.isprintable() for char in out)


def test_lineage_of_nothing_is_not_found(program: Any, shelf: Any) -> None:
    shelf.put()
    assert program("checkpoint", "lineage", "digits/none").err == "Unknown Checkpoint: digits/none\n"
