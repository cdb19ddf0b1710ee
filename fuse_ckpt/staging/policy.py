"""When is a draft complete enough to be sealed? Pure: no clock, no I/O; times are seconds of a monotonic clock."""

from __future__ import annotations

from msgspec import Struct

from fuse_ckpt.model import Shape, Unit
from fuse_ckpt.staging.units import is_set

MANY_APPENDS = 3  # DeepSpeed's writer closes a file three times, which is two appends


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
    many: bool = False  # several processes wrote it, or one that cannot be seen, which may be several
    live_writers: bool | None = None  # None: cannot be told
    first_closed: float | None = None  # None: no member yet
    newest: str = ""  # the member closed or renamed in last, relative to the checkpoint's root
    appends: int = 0  # how often in a row its file was closed, opened again and changed in place; flat ones only
    renamed_into_place: bool = False  # the directory got its name by a rename, and nothing changed since
    unmarked: bool = False  # a mark that said "unfinished" was taken away, and nothing changed since
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


def is_over(draft: Draft) -> bool:
    """Whether nobody is left who would finish it."""
    return draft.finishing or (draft.live_writers is False and not draft.open_writers)


def due(draft: Draft, settings: QuietPeriods) -> float | None:
    """The time from which `draft` should be sealed; None: not while nothing changes."""
    if draft.open_writers:
        return None
    if draft.first_closed is None and not draft.renamed_into_place and not draft.finishing:
        return None
    at_once = is_over(draft) or draft.renamed_into_place
    return draft.last_change + (0.0 if at_once else _quiet_period(draft, settings))


def _quiet_period(draft: Draft, settings: QuietPeriods) -> float:
    if _is_one_file(draft.unit):
        return settings.flat if draft.appends < MANY_APPENDS else settings.quiet_many
    if _is_marked(draft):
        return settings.marker_many if draft.many else settings.marker
    quiet = settings.quiet_many if draft.many else settings.quiet
    return min(quiet, settings.hint) if draft.hinted else quiet


def _is_one_file(unit: Unit) -> bool:
    return unit.shape is Shape.FLAT and not is_set(unit)


def _is_marked(draft: Draft) -> bool:
    return draft.unmarked or is_marker(draft.unit, draft.newest)


def may_be_lost(draft: Draft, now: float, settings: QuietPeriods, *, rewritten: bool) -> bool:
    """Whether destroying a member now could lose a checkpoint that nobody has committed, if the unit is whole.

    A removal always could: a trainer deleted its newest checkpoint 3 ms after finishing it. A member that is rewritten
    may belong to the save that still goes on (tokenizer files come twice), so there the save must look finished: a file
    of its own, its family's marker, or some quiet.
    """
    if draft.open_writers or draft.first_closed is None:
        return False
    if not rewritten or _is_one_file(draft.unit):
        return True
    return _is_marked(draft) or now - draft.last_change >= settings.marker


def may_lack_members(draft: Draft) -> bool:
    """Whether a writer that dies now may have died between two files: a set without its family's marker."""
    return not (_is_one_file(draft.unit) or draft.renamed_into_place or _is_marked(draft))
