"""Which checkpoints a policy keeps, and which go first when the disk gets full. Pure: no clock, no I/O.

A policy is a union of rules; what one of them keeps is kept. `keep-last`, `keep-every` and `keep-best` count within a
*series*: the checkpoints of a job whose NAMEs differ in their numbers alone. So `checkpoint-500` and `checkpoint-1000`
are one series, the versions of `best.pt` another, and none pushes the other out. Whatever the policy says, what is
pinned, tagged or in use stays, and so does the newest checkpoint of each job that it can be resumed from.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from fuse_ckpt.errors import InvalidPolicy
from fuse_ckpt.model import Checkpoint, State

from . import briefs
from .references import latest

GRAMMAR = "keep-last=N, keep-every=STEPS, keep-best=N[:eval_loss|:train_loss], keep-within=7d, joined by commas"
NO_POLICY = "none"  # what takes a job's policy back
RULES = ("keep-last", "keep-every", "keep-best", "keep-within")
LOSSES = ("eval_loss", "train_loss")
NUMBER = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*", re.IGNORECASE)  # of a step or a version; or a hash
DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Policy(Struct, frozen=True):
    """What is kept; the empty one keeps only what no policy may remove."""

    last: int | None = None
    every: int | None = None  # steps
    best: tuple[tuple[int, str | None], ...] = ()  # how many, by which loss; None: the one that the series has
    within: tuple[int, str] | None = None  # ns since it was created, and as it was written


class Decision(Struct, frozen=True):
    """What a policy says of one checkpoint, and why."""

    checkpoint: Checkpoint
    keep: bool
    reason: str


class Candidate(Struct, frozen=True):
    """A checkpoint that may go, and the digests that it names."""

    id: str
    digests: frozenset[str]


def parse_policy(text: str) -> Policy:
    """The policy of a text in the GRAMMAR. Errors: InvalidPolicy."""
    said: dict[tuple[str, str], tuple[int, str]] = {}  # (rule, loss) → the number, and how it was written
    for term in text.split(","):
        rule, _, value = term.strip().partition("=")
        if rule not in RULES:
            raise _invalid(term, "is no rule")
        value, _, loss = value.partition(":") if rule == "keep-best" else (value, "", "")
        if loss not in ("", *LOSSES):
            raise _invalid(term, "names no loss that is known")
        if (rule, loss) in said:
            raise _invalid(term, "says again what another has said")
        said[rule, loss] = (parse_duration(value) if rule == "keep-within" else _count(term, value)), value
    return Policy(
        last=said.get(("keep-last", ""), (None,))[0],
        every=said.get(("keep-every", ""), (None,))[0],
        best=tuple((count, loss or None) for (rule, loss), (count, _) in said.items() if rule == "keep-best"),
        within=said.get(("keep-within", "")),
    )


def parse_duration(text: str) -> int:
    """Nanoseconds of `90s`, `30m`, `12h`, `7d`, `2w`, `0`. Errors: InvalidPolicy."""
    match = DURATION.fullmatch(text.strip())
    if match is None and text.strip() != "0":
        raise InvalidPolicy(f"{text!r} is no duration: write a number and s, m, h, d or w, as in 12h or 7d.")
    return int(match[1]) * SECONDS[match[2]] * 10**9 if match else 0


def decide(checkpoints: Iterable[Checkpoint], policy: Policy, in_use: Mapping[str, str], now_ns: int) -> list[Decision]:
    """A decision on each of `checkpoints` (all that are not deleted of the jobs concerned, in id order), in that order.

    `in_use`: who uses a checkpoint, by its id. Pushed checkpoints belong to no job, and are kept.
    """
    of_job: dict[str, list[Checkpoint]] = defaultdict(list)
    everything = list(checkpoints)
    for one in everything:
        of_job[one.job].append(one)
    decided: dict[str, Decision] = {}
    for job, mine in of_job.items():
        kept = _kept_by_rules(mine, policy, now_ns)
        newest = _newest(mine)
        for one in mine:
            reason = _protection(one, in_use) or (kept.get(one.id, "") if job else "pushed by a person")
            if not reason and one.id == newest:
                reason = "the newest one of its job"
            decided[one.id] = Decision(one, bool(reason), reason or _why_removed(one, policy))
    return [decided[one.id] for one in everything]


def choose(
    candidates: Sequence[Candidate], references: Mapping[str, int], disk: Mapping[str, int], needed: int
) -> list[str]:
    """The ids of those that must go to free `needed` bytes: the first ones of `candidates`, but none in vain.

    `references`: how many checkpoints name a digest; `disk`: the bytes that come free when none does any more, 0 where
    a working tree holds them too. Where all of them are not enough, it is all that free something.
    """
    left = Counter(references)
    taken: list[Candidate] = []
    freed = 0
    for candidate in candidates:
        if freed >= needed:
            break
        left.subtract(candidate.digests)
        freed += sum(disk.get(digest, 0) for digest in candidate.digests if left[digest] == 0)
        taken.append(candidate)
    return [one.id for one in taken if any(left[digest] <= 0 and disk.get(digest, 0) for digest in one.digests)]


def series_of(name: str) -> str:
    """The NAME with its numbers taken out: equal for all checkpoints of a series."""
    return NUMBER.sub("#", name)


def _kept_by_rules(checkpoints: Sequence[Checkpoint], policy: Policy, now_ns: int) -> dict[str, str]:
    """id → the rules that keep it, of one job."""
    series: dict[str, list[Checkpoint]] = defaultdict(list)
    for one in checkpoints:
        series[series_of(one.name)].append(one)
    kept: dict[str, list[str]] = defaultdict(list)
    for members in series.values():
        whole = [one for one in members if one.state is State.AVAILABLE]
        for rule, chosen in _rules(whole, policy):
            for one in chosen:
                kept[one.id].append(rule)
        for one in members:
            if policy.within is not None and now_ns - one.created_ns <= policy.within[0]:
                kept[one.id].append(f"keep-within={policy.within[1]}")
            if one.state is State.FAILED and not (whole and whole[-1].id > one.id):
                kept[one.id].append("failed, and no whole one came after it")
    return {one: ", ".join(rules) for one, rules in kept.items()}


def _rules(whole: Sequence[Checkpoint], policy: Policy) -> Iterator[tuple[str, Collection[Checkpoint]]]:
    """What each rule keeps of the whole ones of a series, in id order."""
    if policy.last is not None:
        yield f"keep-last={policy.last}", whole[-policy.last :]
    if policy.every is not None:
        steps = {one.metadata.step: one for one in whole if one.metadata.step is not None}
        yield f"keep-every={policy.every}", [one for step, one in steps.items() if step % policy.every == 0]
    for count, loss in policy.best:
        by = loss or next((name for name in LOSSES if any(_loss(one, name) is not None for one in whole)), LOSSES[0])
        newest_first = ((_loss(one, by), one) for one in reversed(whole))
        ranked = sorted(((said, one) for said, one in newest_first if said is not None), key=lambda pair: pair[0])
        yield f"keep-best={count}{f':{loss}' if loss else ''}", [one for _, one in ranked[:count]]


def _protection(one: Checkpoint, in_use: Mapping[str, str]) -> str:
    if one.pinned:
        return "pinned"
    if one.tags:
        return f"tagged {', '.join(one.tags)}"
    return f"in use by {in_use[one.id]}" if one.id in in_use else ""


def _newest(checkpoints: Sequence[Checkpoint]) -> str | None:
    """What `JOB:latest` means; where nothing holds weights, the newest whole one."""
    whole = [one for one in reversed(checkpoints) if one.state is State.AVAILABLE]
    return latest((one.id, briefs.of(one)) for one in whole) or (whole[0].id if whole else None)


def _why_removed(one: Checkpoint, policy: Policy) -> str:
    if one.state is State.FAILED:
        return "failed, and a whole one came after it"
    return "no rule keeps it" if policy != Policy() else "the oldest go first"


def _loss(one: Checkpoint, name: str) -> float | None:
    value = one.metadata.eval_loss if name == "eval_loss" else one.metadata.train_loss
    return value if value is not None and math.isfinite(value) else None


def _count(term: str, value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,12}", value) or int(value) == 0:
        raise _invalid(term, "needs a whole number of 1 or more")
    return int(value)


def _invalid(term: str, what: str) -> InvalidPolicy:
    return InvalidPolicy(f"Policy term {term.strip()!r} {what}; a policy is {GRAMMAR}.")
