"""Many decisions in one object, so that a machine that has seen none of them does not ask for each.

A pack is a copy, and never the only one: which groups are decided is what the decisions' own keys say, and each
decision in a pack carries its own checksum. Whoever decides makes one now and then, and so does whoever had to ask for
many; a pack that is lost, or of which nothing is left, changes nothing but the time that a first listing takes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from blake3 import blake3

from fuse_ckpt.errors import Corrupt, StorageFailed
from fuse_ckpt.transfer import Found, Stop, run

from . import documents
from .registers import AT_ONCE, Registers
from .values import Pack

WORTH = 250  # decisions that are in no pack yet
PACK_MAX = 5000  # decisions in one; about 5 MB
TURN = 256  # of so many that decide one looks whether a pack is due


def is_turn(group: str) -> bool:
    """Whether who decides on this group looks after the packs."""
    return int(group[-4:], 16) % TURN == 0


def read(registers: Registers, job: str, wanted: Collection[str]) -> dict[str, bytes]:
    """The decisions that are in packs, of the `wanted` groups, as the bytes of their own objects."""
    found: dict[str, bytes] = {}
    for _, pack in _packs(registers, job):
        found |= {group: text.encode() for group, text in pack.decisions.items() if group in wanted}
    return found


def pack(registers: Registers, job: str, decided: Mapping[str, bytes]) -> int:
    """Put the `decided` groups that are in no pack yet into packs, if there are enough; remove packs that hold none
    that no other one holds. Returns how many decisions were packed."""
    packed: set[str] = set()
    idle = []
    for key, one in sorted(_packs(registers, job), key=lambda pack: (-len(pack[1].decisions), pack[0])):
        mine = one.decisions.keys() & decided.keys()
        if mine <= packed:  # many machines may have packed the same at once
            idle.append(key)
        packed |= mine
    registers.remote.delete(idle)
    fresh = [(group, text) for group in sorted(decided.keys() - packed) if (text := _text(decided[group]))]
    if len(fresh) < WORTH:
        return 0
    for start in range(0, len(fresh), PACK_MAX):
        made = Pack(dict(fresh[start : start + PACK_MAX]))
        data = documents.written(made)
        registers.remote.create(registers.key(job, f"s/{blake3(data).hexdigest(length=16)}.json"), data)
    return len(fresh)


def _text(data: bytes) -> str:
    """The object of a decision; "" where it is damaged."""
    try:
        return data.decode() if documents.is_whole(data) else ""
    except UnicodeDecodeError:
        return ""


def _packs(registers: Registers, job: str) -> list[tuple[str, Pack]]:
    """The packs that can be read, with their keys."""
    found: list[tuple[str, Pack]] = []

    def ask(there: Found) -> None:
        try:
            data = registers.remote.get(there.key, documents.LIMIT)
            if data is not None:
                found.append((there.key, documents.understood(data, Pack, there.key)))
        except (Corrupt, StorageFailed):  # what it holds is asked for one by one
            return

    listed = registers.remote.list(registers.key(job, "s"))
    run(min(AT_ONCE, len(listed)), listed.values(), ask, Stop())
    return found
