"""Which groups a job has: what is decided, what is not, and what was deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from fuse_ckpt.errors import Corrupt, StorageFailed
from fuse_ckpt.transfer import Found, Stop, run

from . import documents, keys, packing
from .registers import AT_ONCE, Registers
from .remembered import Remembered
from .values import Decision, GroupState, Standing


def decisions(
    registers: Registers, job: str, memory: Remembered, problems: list[str], *, packs: bool = False
) -> dict[str, Decision]:
    """Every decision of the job, by group. One that is damaged is left out, with a sentence in `problems`.

    `packs`: whoever had to ask for many one by one spares that the next one.
    """
    held = documents_of(registers, job, memory, packs=packs)
    found = {}
    for group in sorted(held):
        try:
            found[group] = registers.decision_of(job, group, held[group])
        except Corrupt as error:
            problems.append(str(error))
    return found


def documents_of(registers: Registers, job: str, memory: Remembered, *, packs: bool = False) -> dict[str, bytes]:
    """The objects of all decisions of the job, by group, from where they are had soonest."""
    there = registers.groups_below(job, "c")
    known = memory.load()
    unknown = there.keys() - known.keys()
    packed = packing.read(registers, job, unknown) if len(unknown) >= packing.WORTH else {}
    single = _get(registers, job, sorted(unknown - packed.keys()))
    fresh = packed | single
    held = {group: data for group, data in known.items() if group in there} | fresh
    if fresh or held.keys() != known.keys():
        memory.save({group: data for group, data in held.items() if group in known or documents.is_whole(data)})
    if packs and len(single) >= packing.WORTH:
        with contextlib.suppress(StorageFailed, Corrupt):  # whoever may only read does not
            packing.pack(registers, job, held)
    return held


def alive(
    registers: Registers, job: str, memory: Remembered, problems: list[str], *, packs: bool = False
) -> list[Decision]:
    """The decisions about groups that are not deleted: commits in the order of their ids, then the others."""
    found: dict[str, Decision] = {}
    buried: dict[str, Found] = {}

    def ask(name: str) -> None:
        if name == "c":
            found.update(decisions(registers, job, memory, problems, packs=packs))
        else:
            buried.update(registers.groups_below(job, name))

    run(2, "cx", ask, Stop())
    return sorted((one for group, one in found.items() if group not in buried), key=_order)


def each_committed(registers: Registers, job: str, memory: Remembered, problems: list[str]) -> Iterator[Decision]:
    """The commits about groups that are not deleted, in the order of their groups, each made when it is asked for: a
    hundred thousand of them at once are 300 MB."""
    held = documents_of(registers, job, memory)
    buried = registers.groups_below(job, "x")
    for group in sorted(held.keys() - buried.keys()):
        try:
            decision = registers.decision_of(job, group, held.pop(group))
        except Corrupt as error:
            problems.append(str(error))
            continue
        if decision.committed:
            yield decision


def undecided(registers: Registers, job: str) -> list[Standing]:
    """The groups that have parts, no decision and no tombstone."""
    decided = registers.groups_below(job, "c")  # before the parts: one that is decided meanwhile shows, and is harmless
    named = [name for name in registers.remote.directories(registers.key(job, "p")) if keys.is_group(name)]
    open_ones = [group for group in named if group not in decided]
    buried = registers.groups_below(job, "x") if open_ones else {}
    return [partial(registers, job, group) for group in open_ones if group not in buried]


def partial(registers: Registers, job: str, group: str) -> Standing:
    """How a group without a decision stands; one of its parts tells of how many there will be."""
    ranks = registers.ranks(job, group)
    if not ranks:
        return Standing(group, GroupState.ABSENT)
    try:
        first = registers.part(job, group, next(iter(ranks)))
    except Corrupt:
        first = None
    return Standing(group, GroupState.PARTIAL, first[0].nodes if first else 0, tuple(ranks))


def standing_of(decision: Decision, *, buried: bool) -> Standing:
    state = GroupState.REPLICATED if decision.committed else GroupState.ABORTED
    present = tuple(part.rank for part in decision.parts)
    return Standing(decision.group, GroupState.DELETED if buried else state, decision.nodes, present, decision)


def _order(decision: Decision) -> tuple[bool, str, str]:
    return not decision.committed, decision.id, decision.group


def _get(registers: Registers, job: str, groups: Sequence[str]) -> dict[str, bytes]:
    """The objects of those decisions; one that was deleted meanwhile is left out."""
    found: dict[str, bytes] = {}

    def ask(group: str) -> None:
        data = registers.remote.get(registers.key(job, keys.decision_key(group)), documents.SMALL)
        if data is not None:
            found[group] = data

    run(min(AT_ONCE, len(groups)), groups, ask, Stop())
    return found
