"""When is a draft complete enough to be sealed? Pure: no clock, no I/O; times are seconds of a monotonic clock."""

from __future__ import annotations

from msgspec import Struct

from fuse_ckpt.model import Shape, Unit
from fuse_ckpt.staging.units import is_set

UNSEEN = 0  # the pid of a writer in another pid namespace


class QuietPeriods(Struct, frozen=True):
    """How long nothing must have changed, in seconds. `_many`: more than one process writes the unit."""

    flat: float = 0.2  # the chmod and utimens that follow a close still belong to the file
    marker: float = 1.0
    marker_many: float = 5.0  # another rank's rng_state came 0.9 s after the marker
    quiet: float = 5.0  # longest gap seen inside one save: 3.3 s
    quiet_many: float = 30.0
    hint: float = 5.0


class Draft(Struct, frozen=True, kw_only=True):
    """What the policy needs to know of a draft."""

    unit: Unit
    last_change: float  # the last write, close, rename, create or unlink in it; chmod and utimens do not count
    open_writers: int = 0
    writer_pids: frozenset[int] = frozenset()  # UNSEEN among them: nobody knows how many there are
    live_writers: bool | None = None  # None: cannot be told
    temporary: int = 0  # temporary names in it now
    first_closed: float | None = None  # None: no member yet
    newest: str = ""  # the member closed or renamed in last, relative to the checkpoint's root
    renamed_into_place: bool = False  # the directory got its name by a rename, and nothing changed since
    hinted: bool = False  # something else tells that it is done: the next unit begins, `latest` points at it
    finishing: bool = False  # the session ends, or a person asked


_MARKERS = frozenset({"trainer_state.json", "model_index.json", ".metadata", "metadata.json"})
_ROOT_MARKERS = frozenset({"trainer_state.json", "model_index.json"})


def is_marker(unit: Unit, path: str) -> bool:
    """Whether `path`, relative to the checkpoint's root, is what its family of writers writes last.

    Only at the checkpoint's own root: a nested `.metadata` comes early (model and optimizer apart).
    """
    if unit.shape is Shape.ROOT:
        return path in _ROOT_MARKERS
    if unit.shape is Shape.FLAT:
        return is_set(unit) and path == unit.name.rpartition("/")[2] and path.endswith((".json", ".metadata"))
    if path == "meta.pt":  # after .metadata, in the directories that are named like files
        return unit.name.endswith(".ckpt")
    return path in _MARKERS or ("/" not in path and path.endswith(".index.json"))


def due(draft: Draft, settings: QuietPeriods) -> float | None:
    """The time from which `draft` should be sealed; None: not while nothing changes."""
    if draft.open_writers:
        return None
    over = draft.finishing or draft.live_writers is False
    if draft.temporary and not over:
        return None
    if draft.first_closed is None and not draft.renamed_into_place and not draft.finishing:
        return None
    return draft.last_change + (0.0 if over or draft.renamed_into_place else _quiet_period(draft, settings))


def _quiet_period(draft: Draft, settings: QuietPeriods) -> float:
    if draft.unit.shape is Shape.FLAT and not is_set(draft.unit):
        return settings.flat
    many = len(draft.writer_pids) > 1 or UNSEEN in draft.writer_pids
    if is_marker(draft.unit, draft.newest):
        return settings.marker_many if many else settings.marker
    quiet = settings.quiet_many if many else settings.quiet
    return min(quiet, settings.hint) if draft.hinted else quiet


def may_be_lost(draft: Draft, now: float, settings: QuietPeriods, *, rewritten: bool) -> bool:
    """Whether destroying a member now could lose a checkpoint that nobody has committed, if the unit is whole.

    A removal always could: a trainer deleted its newest checkpoint 3 ms after finishing it. A member that is rewritten
    may belong to the save that still goes on (tokenizer files come twice), so there the save must look finished: a file
    of its own, its family's marker, or some quiet.
    """
    if draft.open_writers or draft.first_closed is None:
        return False
    if not rewritten or (draft.unit.shape is Shape.FLAT and not is_set(draft.unit)):
        return True
    return is_marker(draft.unit, draft.newest) or now - draft.last_change >= settings.marker


def may_lack_members(draft: Draft) -> bool:
    """Whether a writer that dies now may have died between two files: a set without its family's marker."""
    if draft.unit.shape is Shape.FLAT and not is_set(draft.unit):
        return False
    return not draft.renamed_into_place and not is_marker(draft.unit, draft.newest)
