"""From parts to a decision: the one place where a group becomes a checkpoint, or never will be one."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from fuse_ckpt.errors import Corrupt, StorageFailed, Withdrawn
from fuse_ckpt.faults import fault
from fuse_ckpt.transfer import Found

from . import deciding, documents, keys, listing, sending
from .registers import Registers
from .values import Decision, GroupState, Part, Registered, Standing

LOOK_NS = 60 * 10**9  # that may pass between looking for tombstones and making a part; far below any grace


def put_part(registers: Registers, part: Part) -> Registered:
    """See `SharedStore.put_part`."""
    part = documents.check_part(part)
    found = registers.part(part.job, part.group, part.rank)
    if found is not None:
        return Registered(found[0], found[0] == part)
    lenders = deciding.borrowed(part)
    files = [*part.files, *part.companions]
    sizes = {registers.key(part.job, file.key): file.size for file in files if file.key}
    while True:
        looked_ns = time.monotonic_ns()
        gone = withdrawn(registers, part.job, lenders)
        if gone:
            raise Withdrawn(gone)
        missing = sending.missing(registers.remote, sizes)
        lost = {group for group in lenders if any(f"/d/{group}/" in key for key in missing)}
        if lost:  # it is so long ago that its tombstone has gone, too
            raise Withdrawn(frozenset(lost))
        if missing:
            raise StorageFailed(next(iter(missing.values())))
        if time.monotonic_ns() - looked_ns <= LOOK_NS:
            break
    made, data = registers.claim(part.job, keys.part_key(part.group, part.rank), part, documents.LIMIT)
    if (made.job, made.group, made.rank) != (part.job, part.group, part.rank):
        raise Corrupt(f"{keys.part_key(part.group, part.rank)} is another part than it is named for.")
    return Registered(made, data == documents.written(part))


def withdrawn(registers: Registers, job: str, groups: Collection[str]) -> frozenset[str]:
    """Those of the groups whose data may be taken away."""
    return frozenset(group for group in groups if registers.buried(job, group))


def standing(registers: Registers, job: str, group: str) -> Standing:
    """How the group stands. Decides nothing."""
    decision = registers.decision(job, group)
    buried = registers.buried(job, group)
    if decision is not None:
        return listing.standing_of(decision, buried=buried)
    if buried:
        return Standing(group, GroupState.DELETED)
    return listing.partial(registers, job, group)


def reconcile(registers: Registers, job: str, group: str, rank: int | None) -> tuple[Standing, bool]:
    """How the group stands, after deciding what can be decided (by `rank` only where its part came last); and whether
    there was anything to decide."""
    found = standing(registers, job, group)
    if found.state is not GroupState.PARTIAL or len(found.present) < found.nodes:
        return found, False
    if rank is not None and rank != _last(registers.ranks(job, group)):
        return found, False
    fault("share:decide")
    verdict = deciding.decide(registers.parts(job, group, found.present))
    if isinstance(verdict, deciding.Missing):
        return found, False
    return settle(registers, verdict), True


def _last(ranks: Mapping[int, Found]) -> int:
    """Whose part came last; all who see the same parts find the same rank."""
    return max(ranks, key=lambda rank: (ranks[rank].modified_ns, rank), default=-1)


def settle(registers: Registers, verdict: Decision) -> Standing:
    """Have the group decided so, unless it is already; adopts what is there.

    A tombstone that came between hides whatever was decided.
    """
    made, _ = registers.claim(verdict.job, keys.decision_key(verdict.group), verdict)
    if (made.job, made.group) != (verdict.job, verdict.group):
        raise Corrupt(f"{keys.decision_key(verdict.group)} decides on another group than it is named for.")
    return listing.standing_of(made, buried=registers.buried(verdict.job, verdict.group))


def reap(registers: Registers, job: str, by: str, now_ns: int, older_than_ns: int) -> list[Standing]:
    """Decide what is complete; abort what has been partial for long, by the object store's clock."""
    open_ones = listing.undecided(registers, job)
    if not open_ones:
        return []
    latest_ns = registers.now_ns() - older_than_ns
    return [one for group in open_ones if (one := _reaped(registers, job, group, by, now_ns, latest_ns)) is not None]


def _reaped(registers: Registers, job: str, found: Standing, by: str, now_ns: int, latest_ns: int) -> Standing | None:
    """How the group stands, where that has changed."""
    ranks = registers.ranks(job, found.group)
    newest_ns = max((one.modified_ns for one in ranks.values()), default=latest_ns + 1)
    # A listing may be older than a part: what it lacks is asked for by name before anything is given up.
    wanted = range(found.nodes) if newest_ns <= latest_ns and found.nodes else ranks
    try:
        parts = registers.parts(job, found.group, wanted)
        verdict = deciding.decide(parts)
    except Corrupt as error:
        if newest_ns > latest_ns:
            return None
        return settle(registers, deciding.aborted(job, found.group, str(error), by, now_ns))
    if isinstance(verdict, deciding.Missing):
        if newest_ns > latest_ns or not parts:
            return None
        missing = deciding.state_of(Standing(found.group, GroupState.PARTIAL, verdict.nodes, tuple(sorted(parts))))
        verdict = deciding.aborted(job, found.group, f"it stayed {missing}", by, now_ns)
    return settle(registers, verdict)


def check_parts(decision: Decision, parts: dict[int, tuple[Part, str]]) -> list[Part]:
    """The parts that a commit names, if they are there and are those. Errors: Corrupt."""
    for ref in decision.parts:
        if ref.rank not in parts:
            raise Corrupt(f"Checkpoint {decision.id} has lost its part of rank {ref.rank}: take another checkpoint.")
        if parts[ref.rank][1] != ref.digest:
            raise Corrupt(f"Checkpoint {decision.id}: its part of rank {ref.rank} is another: take another checkpoint.")
    return [parts[ref.rank][0] for ref in decision.parts]
