"""How a group goes: tombstone, grace, decision, data, parts. Each step can be done again by anybody.

What makes it safe to name the data of an earlier group in a new part: whoever makes a part looks, just before, that
there is no tombstone; whoever takes data away does so a long grace after the tombstone, and reads first which parts
name it. The grace is by the object store's own clock, and far longer than making a part takes.

A tombstone stays for long: what a process that was stopped in the middle of a decision still makes of the group is
hidden by it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from fuse_ckpt.errors import Corrupt
from fuse_ckpt.faults import fault

from . import keys, listing
from .deciding import aborted, borrowed, named_keys
from .registers import Registers
from .remembered import Remembered
from .values import Tombstone

GRACE_NS = 3600 * 10**9  # from a tombstone to the first byte that goes
ORPHANED = 7  # times as long as a partial group is waited for
TOMBSTONE_NS = 30 * 86400 * 10**9  # that a tombstone is kept when all else of its group is gone


def delete(registers: Registers, job: str, groups: Sequence[str], grace_ns: int, memory: Remembered) -> list[str]:
    """Take away what these groups hold, where their tombstones are old enough; returns those that were done."""
    stones = registers.groups_below(job, "x")
    if not stones.keys() & set(groups):
        return []
    latest_ns = registers.now_ns() - grace_ns
    old = {group for group, stone in stones.items() if stone.modified_ns <= latest_ns}
    going = [group for group in dict.fromkeys(groups) if group in old]
    if going:
        decided, named = _named_by_others(registers, job, set(going), memory)
        emptied = old - decided
        for group in going:
            _take_away(registers, job, group, emptied, named)
    return going


def sweep(registers: Registers, job: str, by: str, now_ns: int, older_than_ns: int, memory: Remembered) -> None:
    """Give back what nobody will come back for: data without a part, aborted groups, deletions that were interrupted.

    All ages are by the object store's clock. Data without a part is left alone seven times as long as anything else:
    it may be of a group that is still being sent.
    """
    groups = _groups_with_data(registers, job)
    decided, stones = registers.groups_below(job, "c"), registers.groups_below(job, "x")
    open_ones = set(registers.remote.directories(registers.key(job, "p")))
    now_there_ns = registers.now_ns()
    for group in groups - decided.keys() - stones.keys() - open_ones:
        sent = registers.remote.list(registers.key(job, f"d/{group}")).values()
        if all(now_there_ns - one.modified_ns >= ORPHANED * older_than_ns for one in sent):
            verdict = aborted(job, group, "data was sent, and no part came", by, now_ns)
            registers.claim(job, keys.decision_key(group), verdict)
    for group, one in listing.decisions(registers, job, memory, []).items():
        old = group in decided and now_there_ns - decided[group].modified_ns >= older_than_ns
        if not one.committed and old and group not in stones:
            registers.bury(Tombstone(job, group, by, now_ns))
    delete(registers, job, sorted(stones.keys() & (groups | decided.keys() | open_ones)), GRACE_NS, memory)


def _groups_with_data(registers: Registers, job: str) -> set[str]:
    return {name for name in registers.remote.directories(registers.key(job, "d")) if keys.is_group(name)}


def forget(registers: Registers, job: str) -> list[str]:
    """Remove the tombstones that are old, and of whose groups nothing is left."""
    stones = registers.groups_below(job, "x")
    if not stones:
        return []
    now_ns = registers.now_ns()
    old = [group for group, stone in stones.items() if now_ns - stone.modified_ns >= TOMBSTONE_NS]
    gone = [group for group in old if not _anything_left(registers, job, group)]
    registers.remote.delete([registers.key(job, keys.tombstone_key(group)) for group in gone])
    return gone


def _named_by_others(
    registers: Registers, job: str, going: Collection[str], memory: Remembered
) -> tuple[set[str], set[str]]:
    """The groups besides the `going` ones that have a decision, and the data keys that parts of other groups name.

    The decisions are read first, then what has none, so that a group that is decided in between is seen.
    """
    problems: list[str] = []
    decided = listing.decisions(registers, job, memory, problems)
    undecided = {standing.group for standing in listing.undecided(registers, job)}
    borrowers = {group for group, one in decided.items() if one.committed and one.borrowed}
    if problems:  # one that cannot be read may borrow anything
        undecided |= registers.groups_below(job, "c").keys() - decided.keys()
    found: set[str] = set()
    for group in (borrowers | undecided) - set(going):
        for part, _ in registers.parts(job, group, registers.ranks(job, group)).values():
            found |= named_keys(part)
    return decided.keys() - set(going) | undecided, found


def _take_away(registers: Registers, job: str, group: str, emptied: Collection[str], named: Collection[str]) -> None:
    """`emptied`: the groups of which nothing is to stay but what other parts name, if they are lenders of this one."""
    ranks = registers.ranks(job, group)
    lenders = {lender for rank in ranks for lender in _lenders(registers, job, group, rank)}
    fault("share:delete:decision")
    registers.remote.delete([registers.key(job, keys.decision_key(group))])
    fault("share:delete:data")
    for each in (group, *sorted(lenders & set(emptied))):
        _remove_data(registers, job, each, named)
    fault("share:delete:parts")
    registers.remote.delete([registers.key(job, keys.part_key(group, rank)) for rank in ranks])
    fault("share:delete:done")


def _lenders(registers: Registers, job: str, group: str, rank: int) -> set[str]:
    """The groups that a part borrows from; none where it cannot be read, and what it borrowed may be left behind."""
    try:
        found = registers.part(job, group, rank)
    except Corrupt:
        return set()
    return set() if found is None else borrowed(found[0])


def _remove_data(registers: Registers, job: str, group: str, named: Collection[str]) -> None:
    prefix = registers.key(job, "")
    found = registers.remote.list(registers.key(job, f"d/{group}"))
    registers.remote.delete([key for key in found if key.removeprefix(prefix) not in named])


def _anything_left(registers: Registers, job: str, group: str) -> bool:
    left: Iterable[str] = (f"d/{group}", f"p/{group}")
    if any(registers.remote.list(registers.key(job, name)) for name in left):
        return True
    return registers.remote.head(registers.key(job, keys.decision_key(group))) is not None
