"""What policies keep, as golden tables: one job with three series, and what each policy says of it."""

from __future__ import annotations

import math
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_ckpt.errors import InvalidPolicy
from fuse_ckpt.model import Checkpoint, Metadata, Shape, State
from fuse_ckpt.store.retention import (
    Candidate,
    Policy,
    choose,
    decide,
    parse_duration,
    parse_policy,
    series_of,
)

HOUR = 3600 * 10**9
NOW = 1000 * HOUR


def make(
    number: int,
    name: str,
    hours: float,
    step: int | None = None,
    job: str = "job",
    resumable: bool = True,
    **more: object,
) -> Checkpoint:
    said = {key: more.pop(key) for key in ("eval_loss", "train_loss") if key in more}
    metadata = Metadata(step=step, resumable=resumable, weights=resumable, **said)  # type: ignore[arg-type]
    fields = {"state": State.AVAILABLE, **more}
    return Checkpoint(
        f"{number:02}", job, name, Shape.FLAT, number, "0", created_ns=int(NOW - hours * HOUR), committed_ns=1, size=1,
        files=1, metadata=metadata, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


JOB = [
    make(1, "checkpoint-500", 50, 500, eval_loss=0.9),
    make(2, "best.pt", 49, 500, eval_loss=0.9),
    make(3, "eval.json", 48, resumable=False),
    make(4, "checkpoint-1000", 40, 1000, eval_loss=0.5),
    make(5, "best.pt", 39, 1000, eval_loss=0.5),
    make(6, "checkpoint-1500", 30, 1500, eval_loss=0.7, train_loss=0.1),
    make(7, "checkpoint-1700", 29, state=State.FAILED, failure="torn"),
    make(8, "checkpoint-2000", 20, 2000, eval_loss=math.nan, train_loss=0.2),
    make(9, "eval.json", 19, resumable=False),
    make(10, "checkpoint-2500", 10, 2500, eval_loss=0.6),
    make(11, "checkpoint-2700", 5, state=State.FAILED, failure="torn"),
]


def table(checkpoints: list[Checkpoint], policy: str, in_use: dict[str, str] | None = None) -> str:
    parsed = parse_policy(policy) if policy else Policy()
    decisions = decide(checkpoints, parsed, in_use or {}, NOW)
    assert [one.checkpoint for one in decisions] == checkpoints
    return "\n".join(
        f"{one.checkpoint.id} {one.checkpoint.name:15} {'keep' if one.keep else 'remove':6} {one.reason}"
        for one in decisions
    )


def expected(text: str) -> str:
    return textwrap.dedent(text).strip()


def test_keep_last_counts_in_each_series() -> None:
    assert table(JOB, "keep-last=2") == expected("""
        01 checkpoint-500  remove no rule keeps it
        02 best.pt         keep   keep-last=2
        03 eval.json       keep   keep-last=2
        04 checkpoint-1000 remove no rule keeps it
        05 best.pt         keep   keep-last=2
        06 checkpoint-1500 remove no rule keeps it
        07 checkpoint-1700 remove failed, and a whole one came after it
        08 checkpoint-2000 keep   keep-last=2
        09 eval.json       keep   keep-last=2
        10 checkpoint-2500 keep   keep-last=2
        11 checkpoint-2700 keep   failed, and no whole one came after it
    """)


def test_rules_are_a_union_and_each_says_what_it_keeps() -> None:
    assert table(JOB, "keep-last=1,keep-every=1000,keep-best=2:eval_loss,keep-within=1d") == expected("""
        01 checkpoint-500  remove no rule keeps it
        02 best.pt         keep   keep-best=2:eval_loss
        03 eval.json       remove no rule keeps it
        04 checkpoint-1000 keep   keep-every=1000, keep-best=2:eval_loss
        05 best.pt         keep   keep-last=1, keep-every=1000, keep-best=2:eval_loss
        06 checkpoint-1500 remove no rule keeps it
        07 checkpoint-1700 remove failed, and a whole one came after it
        08 checkpoint-2000 keep   keep-every=1000, keep-within=1d
        09 eval.json       keep   keep-last=1, keep-within=1d
        10 checkpoint-2500 keep   keep-last=1, keep-best=2:eval_loss, keep-within=1d
        11 checkpoint-2700 keep   keep-within=1d, failed, and no whole one came after it
    """)


def test_keep_best_goes_by_the_loss_that_the_series_says() -> None:
    trained = [make(n, f"step_{n}", 1, n, train_loss=loss) for n, loss in enumerate((0.3, 0.1, 0.1, 0.2))]
    assert table(trained, "keep-best=1") == expected("""
        00 step_0          remove no rule keeps it
        01 step_1          remove no rule keeps it
        02 step_2          keep   keep-best=1
        03 step_3          keep   the newest one of its job
    """)
    kept = [one.checkpoint.id for one in decide(JOB, parse_policy("keep-best=1:train_loss"), {}, NOW) if one.keep]
    assert kept == ["06", "10", "11"]


def test_what_people_and_processes_hold_is_kept_whatever_the_policy_says() -> None:
    held = [
        make(1, "a_1.pt", 9, pinned=True),
        make(2, "a_2.pt", 8, tags=("release-1", "paper")),
        make(3, "a_3.pt", 7),
        make(4, "a_4.pt", 6, state=State.FAILED, pinned=True),
        make(5, "a_5.pt", 5),
        make(6, "mine.pt", 4, job=""),
        make(7, "a_7.pt", 3),
    ]
    assert table(held, "keep-within=1h", {"03": "a run of other"}) == expected("""
        01 a_1.pt          keep   pinned
        02 a_2.pt          keep   tagged release-1, paper
        03 a_3.pt          keep   in use by a run of other
        04 a_4.pt          keep   pinned
        05 a_5.pt          remove no rule keeps it
        06 mine.pt         keep   pushed by a person
        07 a_7.pt          keep   the newest one of its job
    """)


def test_the_newest_one_to_resume_from_is_never_removed() -> None:
    saved = [make(1, "x.pt", 9), make(2, "export.bin", 8, resumable=False), make(3, "torn.pt", 7, state=State.FAILED)]
    assert table(saved, "") == expected("""
        01 x.pt            keep   the newest one of its job
        02 export.bin      remove the oldest go first
        03 torn.pt         keep   failed, and no whole one came after it
    """)
    reports = [make(1, "a.json", 9, resumable=False), make(2, "b.json", 8, resumable=False)]
    assert table(reports, "").splitlines()[1].endswith("keep   the newest one of its job")


def test_a_step_that_was_saved_twice_is_kept_once() -> None:
    saved = [make(1, "step_1000", 9, 1000), make(2, "step_1000", 8, 1000), make(3, "step_1100", 7, 1100)]
    assert [one.keep for one in decide(saved, parse_policy("keep-every=1000"), {}, NOW)] == [False, True, True]


def test_a_clock_that_went_back_removes_nothing_early() -> None:
    assert decide([make(1, "a.pt", -5), make(2, "b.pt", 0)], parse_policy("keep-within=1h"), {}, NOW)[0].keep


def test_jobs_do_not_count_for_each_other() -> None:
    saved = [make(1, "c.pt", 9, job="one"), make(2, "c.pt", 8, job="two")]
    assert all(one.keep for one in decide(saved, parse_policy("keep-last=1"), {}, NOW))


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("checkpoint-500", "checkpoint-#"),
        ("checkpoints/epoch=3-step=40.ckpt", "checkpoints/epoch=#-step=#.ckpt"),
        ("best.pt", "best.pt"),
        ("", ""),
        ("ckpt_a1b2c3", "ckpt_#"),
        ("iter_0000010/", "iter_#/"),
        ("decade.pt", "decade.pt"),
    ],
)
def test_a_series_is_what_differs_in_numbers_alone(name: str, series: str) -> None:
    assert series_of(name) == series


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("keep-last=3", Policy(last=3)),
        (" keep-last=3 , keep-every=1000 ", Policy(last=3, every=1000)),
        ("keep-best=2", Policy(best=((2, None),))),
        ("keep-best=2:eval_loss,keep-best=1:train_loss", Policy(best=((2, "eval_loss"), (1, "train_loss")))),
        ("keep-within=7d", Policy(within=(7 * 24 * HOUR, "7d"))),
    ],
)
def test_a_policy_is_read(text: str, policy: Policy) -> None:
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("", "''"),
        ("keep-last", "'keep-last'"),
        ("keep-last=0", "'keep-last=0'"),
        ("keep-last=-1", "'keep-last=-1'"),
        ("keep-last=1.5", "'keep-last=1.5'"),
        ("keep-last=3,", "''"),
        ("keep-last=3,keep-last=4", "'keep-last=4'"),
        ("keep-last=3;keep-every=2", "'keep-last=3;keep-every=2'"),
        ("keep-best=2:loss", "'keep-best=2:loss'"),
        ("keep-best=x:eval_loss", "'keep-best=x:eval_loss'"),
        ("keep-last=3:eval_loss", "'keep-last=3:eval_loss'"),
        ("keep-daily=7", "'keep-daily=7'"),
        ("keep-last=9999999999999", "'keep-last=9999999999999'"),
        ("keep-last=\n3", r"'keep-last=\n3'"),
    ],
)
def test_a_bad_policy_names_the_term_and_the_grammar_in_one_line(text: str, term: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        parse_policy(text)
    assert str(caught.value).startswith(f"Policy term {term} ")
    assert "keep-last=N, keep-every=STEPS" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("2w", 1209600), ("0", 0)])
def test_a_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds * 10**9


@pytest.mark.parametrize("text", ["", "7", "d", "7 d", "7days", "-1d", "1.5h", "keep", "9999999999d"])
def test_a_bad_duration_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidPolicy, match="as in 12h or 7d"):
        parse_duration(text)


def candidates(*digests: str) -> list[Candidate]:
    return [Candidate(str(n), frozenset(mine)) for n, mine in enumerate(digests)]


def test_the_first_ones_go_until_there_is_enough() -> None:
    refs = dict.fromkeys("abc", 1)
    assert choose(candidates("a", "b", "c"), refs, dict.fromkeys("abc", 10), 15) == ["0", "1"]
    assert choose(candidates("a", "b", "c"), refs, dict.fromkeys("abc", 10), 0) == []


def test_none_goes_in_vain() -> None:
    """What others name, or a working tree holds, comes not free."""
    disk = {"a": 0, "b": 10, "c": 10, "s": 100}
    assert choose(candidates("a", "bs", "c"), {"a": 1, "b": 1, "s": 2, "c": 1}, disk, 20) == ["1", "2"]


def test_shared_bytes_come_free_with_the_last_that_names_them() -> None:
    assert choose(candidates("s", "s", "s"), {"s": 3}, {"s": 9}, 5) == ["0", "1", "2"]
    assert choose(candidates("s", "s"), {"s": 3}, {"s": 9}, 5) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["ck-1", "ck-2", "b.pt", ""]), st.sampled_from(list(State)[1:3]), st.booleans())
    ),
    st.sampled_from(["keep-last=1", "keep-every=2", "keep-best=1", "keep-within=1h", "keep-last=2,keep-best=3"]),
)
def test_no_policy_takes_what_can_be_resumed_from(saved: list[tuple[str, State, bool]], policy: str) -> None:
    made = [
        make(n, name, 99 - n, n, resumable=resumable, state=state) for n, (name, state, resumable) in enumerate(saved)
    ]
    kept = [one.checkpoint for one in decide(made, parse_policy(policy), {}, NOW) if one.keep]
    whole = [one for one in made if one.state is State.AVAILABLE]
    resumable = [one for one in whole if one.metadata.resumable]
    assert (resumable or whole)[-1:] == [one for one in (resumable or whole)[-1:] if one in kept]
