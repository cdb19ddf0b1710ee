"""What real frameworks do, replayed at other paces: the exact list of checkpoints, versions and amendments of each.

Below, "checkpoint-3@1 (9)" is the first checkpoint of that name, with 9 files; "r2": amended once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_ckpt.staging.units import UnitRules
from tests.replay.player import Result
from tests.replay.stage import play
from tests.replay.traces import (
    TRACES,
    Event,
    Pace,
    Trace,
    apart,
    as_recorded,
    at_once,
    gathers,
    load,
    slow_rank,
)

# As the programs of scripts/training/frameworks do it, and in whatever time.
SAVES: dict[str, list[str]] = {
    "torch-flat": ["step-3.pt@1 (1)", "step-6.pt@1 (1)"],
    "torch-fixed": ["last.pt@1 (1)", "last.pt@2 (1)"],
    "torch-replaced": ["last.pt@1 (1)", "last.pt@2 (1)"],
    "torch-directory": ["step-3@1 (3)", "step-6@1 (3)"],
    "safetensors": ["step-3@1 (2)", "step-6@1 (2)"],
    "trainer": ["checkpoint-2@1 (8)", "checkpoint-4@1 (8)", "checkpoint-6@1 (8)", "@1 (4)"],
    "trainer-2": ["checkpoint-3@1 (9)", "checkpoint-6@1 (9)"],
    "peft": ["checkpoint-3@1 (8)", "checkpoint-6@1 (8)"],
    "accelerate": [f"checkpoints/checkpoint_{number}@1 (5)" for number in range(3)],
    "accelerate-2": [f"checkpoints/checkpoint_{number}@1 (6)" for number in range(2)],
    "lightning-top": ["checkpoints/epoch=0-step=3.ckpt@1 (1)", "checkpoints/epoch=1-step=6.ckpt@1 (1)"],
    "lightning-link": ["checkpoints/epoch=0-step=3.ckpt@1 (1)", "checkpoints/epoch=1-step=6.ckpt@1 (1)"],
    "lightning-copy": [
        "checkpoints/epoch=0-step=3.ckpt@1 (1)",
        "checkpoints/last.ckpt@1 (1)",
        "checkpoints/epoch=1-step=6.ckpt@1 (1)",
        "checkpoints/last.ckpt@2 (1)",
    ],
    "lightning-copied": [
        "checkpoints/epoch=0-step=3.ckpt@1 (1)",
        "checkpoints/last.ckpt@1 (1)",
        "checkpoints/epoch=1-step=6.ckpt@1 (1)",
        "checkpoints/last.ckpt@2 (1)",
    ],
    "dcp-2": ["step-3@1 (3)", "step-6@1 (3)"],
    "dcp-async-2": ["step-3@1 (3)", "step-6@1 (3)"],
    "fsdp2-2": ["step-3@1 (3)", "step-6@1 (3)"],
    "deepspeed-2": ["global_step3@1 (3)", "global_step6@1 (3)"],
    "diffusers": ["pipe@1 (4)", "pipe@2 (4)"],
    "sentence-transformers": ["step-3@1 (9)", "step-6@1 (9)"],
}

# Two saves of one file within its quiet period: the first is sealed before what was closed just before it.
HASTY = {"lightning-copy", "lightning-copied"}


def shown(results: list[Result]) -> list[str]:
    return [f"{one.name} ({len(one.files)})" for one in results]


def test_every_trace_is_replayed() -> None:
    assert {path.stem for path in TRACES.glob("*.jsonl")} == SAVES.keys()


@pytest.mark.parametrize("pace", [as_recorded, at_once, apart(120)], ids=["recorded", "at once", "apart"])
@pytest.mark.parametrize("name", SAVES)
def test_each_save_is_one_checkpoint_whatever_the_pace(
    name: str, pace: Pace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shown(play(pace(load(name)), tmp_path, monkeypatch))
    if name in HASTY or pace is at_once:  # of what happens in one moment nothing is the first
        assert sorted(found) == sorted(SAVES[name])
    else:
        assert found == SAVES[name]


# Between its files a save is silent for so long. What has a sign of its end waits for that; what has none is listed as
# it is after a while, grows for 30 seconds under its id, and then as a new version.
GATHERS: list[tuple[str, float, list[str]]] = [
    *((name, 4, SAVES[name]) for name in SAVES if name not in HASTY),
    *((name, 120, SAVES[name]) for name in ("dcp-2", "dcp-async-2", "fsdp2-2")),
    *((name, 120, SAVES[name]) for name in ("torch-flat", "torch-fixed", "lightning-link", "lightning-copy")),
    ("trainer-2", 20, SAVES["trainer-2"]),
    ("safetensors", 20, ["step-3@1 r2 (2)", "step-6@1 r2 (2)"]),
    ("safetensors", 40, ["step-3@1 (1)", "step-3@2 (2)", "step-6@1 (1)", "step-6@2 (2)"]),
    (
        "accelerate",
        20,
        [
            f"checkpoints/checkpoint_{number}@{part}"
            for number in range(3)
            for part in ("1 r2 (2)", "2 r2 (4)", "3 (5)")
        ],
    ),
    ("deepspeed-2", 40, ["global_step3@1 r2 (3)", "global_step6@1 (1)", "global_step6@2 (2)", "global_step6@3 (3)"]),
    ("diffusers", 20, ["pipe@1 r2 (2)", "pipe@2 r2 (4)", "pipe@3 (4)", "pipe@4 (4)"]),
    (
        "trainer",
        20,
        [
            *(
                f"checkpoint-{step}@{number} r2 ({2 * number})"
                for step in (2, 4, 6)
                for number in range(1, 5)
            ),
            "@1 r2 (2)",
            "@2 r2 (4)",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seconds", "expected"), GATHERS, ids=[f"{name} {s:g} s" for name, s, _ in GATHERS])
def test_a_save_that_is_silent_between_its_files(
    name: str, seconds: float, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(play(gathers(seconds)(load(name)), tmp_path, monkeypatch)) == expected


# One rank writes its files so much later than the others. Where the others' last file is the family's sign of the end,
# the checkpoint is listed after a second; else after 5 seconds.
SLOW: list[tuple[str, str, float, list[str]]] = [
    ("trainer-2", "rng_state_1.pth", 0.5, ["checkpoint-3@1 (9)", "checkpoint-6@1 (9)"]),
    ("trainer-2", "rng_state_1.pth", 3, ["checkpoint-3@1 r2 (9)", "checkpoint-6@1 r2 (9)"]),
    ("trainer-2", "rng_state_1.pth", 20, ["checkpoint-3@1 r2 (9)", "checkpoint-6@1 r2 (9)"]),
    ("trainer-2", "rng_state_1.pth", 60,
     ["checkpoint-3@1 (8)", "checkpoint-3@2 (9)", "checkpoint-6@1 (8)", "checkpoint-6@2 (9)"]),
    ("accelerate-2", "random_states_1.pkl", 3, SAVES["accelerate-2"]),
    ("accelerate-2", "random_states_1.pkl", 20,
     ["checkpoints/checkpoint_0@1 r2 (6)", "checkpoints/checkpoint_1@1 r2 (6)"]),
    ("deepspeed-2", "rank_1_mp_rank_00_optim_states.pt", 3, SAVES["deepspeed-2"]),
    ("deepspeed-2", "rank_1_mp_rank_00_optim_states.pt", 20, ["global_step3@1 r2 (3)", "global_step6@1 r2 (3)"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "seconds", "expected"), SLOW, ids=[f"{name} {s:g} s" for name, _, s, _ in SLOW]
)
def test_a_rank_that_is_late(
    name: str, file: str, seconds: float, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(play(slow_rank(file, seconds)(load(name)), tmp_path, monkeypatch)) == expected


# -- killed


KILLED = "its writer was killed by signal 9"


def killed(trace: Trace, at: int) -> Trace:
    """All writers are killed before the event of that number: the kernel closes what they had open."""
    before = [event for event in trace[:at] if event.op != "exit"]
    when = before[-1].t + 0.001
    opened = {event.file for event in before if event.op in ("create", "open")}
    left = sorted(opened - {event.file for event in before if event.op == "close"})
    closes = [Event(when, "close", file=file, changed=True, death=KILLED) for file in left]
    writers = sorted({event.pid for event in before} - {0})
    return [*before, *closes, *(Event(when, "exit", pid=pid, death=KILLED) for pid in writers)]


def closed_units(trace: Trace) -> set[str]:
    """The NAMEs of the units of which a file was closed, by the names that the files had then."""
    rules, paths, found = UnitRules(), {}, set()
    for event in trace:
        if event.op in ("create", "open"):
            paths[event.file] = event.path
        elif event.op == "rename":
            paths = {file: event.to if path == event.path else path for file, path in paths.items()}
            unit = rules.unit_of(event.to)
            found |= {unit.name} if unit else set()
        elif event.op == "close" and event.changed:
            unit = rules.unit_of(paths[event.file])
            found |= {unit.name} if unit else set()
    return found


@pytest.mark.parametrize("name", SAVES)
def test_a_kill_at_any_event_leaves_nothing_torn_that_is_available_and_loses_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = load(name)
    whole: dict[str, set[tuple[str, ...]]] = {}
    for one in _play(trace, tmp_path / "whole", monkeypatch):
        whole.setdefault(one.name.partition("@")[0], set()).add(one.files)
    for at in range(1, len(trace)):
        cut = killed(trace, at)
        listed = _play(cut, tmp_path / str(at), monkeypatch)
        available = [one for one in listed if not one.name.endswith(" failed")]
        for one in available:
            assert one.files in whole[one.name.partition("@")[0]], f"killed before event {at}: {one} is torn"
        assert closed_units(cut) <= {one.name.partition("@")[0] for one in listed}, f"killed before event {at}"


def _play(trace: Trace, place: Path, monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    place.mkdir()
    return play(trace, place, monkeypatch)
