"""What was sealed a short while ago: a file that comes late belongs to it, and not to a version of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from fuse_ckpt.model import InodeKey, Shape, Unit
from fuse_ckpt.staging.journal import Sealed
from fuse_ckpt.staging.units import CARD, goes_on, is_set
from fuse_ckpt.staging.worktree import Scan

PROVISIONAL = 30.0  # seconds after a commit in which new files amend it


class Recent(Struct):
    """A sealed draft that may be amended: `until` when (the area's clock; infinity while it is not committed).

    `files`: path below the output directory → inode; None where it is not known which one was committed.
    """

    draft: str
    files: dict[str, InodeKey | None]
    until: float
    abandoned: str | None = None  # how a writer of it died: what comes late cannot heal that

    def is_added_to(self, scan: Scan) -> bool:
        """Whether the unit as it is now has files beyond these, and these are as they were. Logs may be anything."""
        found = _without_logs({one.path: one.key for one in scan.files})
        mine = _without_logs(self.files)
        kept = all(path in found and key in (None, found[path]) for path, key in mine.items())
        return kept and len(found) > len(mine)


class RecentDrafts:
    """The newest sealed draft of each unit, as long as it may be amended."""

    def __init__(self) -> None:
        self._recent: dict[Unit, Recent] = {}

    def sealed(self, sealed: Sealed, before: Recent | None, abandoned: str | None) -> None:
        """A draft was sealed; `before`: what it adds files to. The time of the first commit counts for all of them."""
        unit = sealed.journal.unit
        self._recent.pop(unit, None)
        if unit.shape is not Shape.FLAT or is_set(unit):
            members = (one for one in sealed.journal.files if one.link and not one.companion)
            files: dict[str, InodeKey | None] = {one.path: one.key for one in members}
            recent = Recent(sealed.directory.name, files, math.inf, abandoned)
            if before is not None:
                recent.until, recent.abandoned = before.until, abandoned or before.abandoned
            self._recent[unit] = recent

    def committed(self, sealed: Sealed, now: float) -> None:
        found = self._recent.get(sealed.journal.unit)
        if found is not None and found.until == math.inf and found.draft == sealed.directory.name:
            found.until = now + PROVISIONAL
        self._recent = {unit: recent for unit, recent in self._recent.items() if recent.until >= now}

    def found(self, unit: Unit, recent: Recent) -> None:
        """What an earlier mount committed may be amended still."""
        self._recent[unit] = recent

    def of(self, unit: Unit, now: float) -> Recent | None:
        """What a draft of `unit` that begins now may amend."""
        found = self._recent.get(unit)
        return found if found is not None and now <= found.until else None

    def lacks(self, unit: Unit, path: str, now: float) -> bool:
        """Whether `path`, which starts nothing by itself, is a model card that `unit` waits for."""
        found = self.of(unit, now)
        return found is not None and path == CARD and path not in found.files


def _without_logs(files: Mapping[str, InodeKey | None]) -> dict[str, InodeKey | None]:
    return {path: key for path, key in files.items() if not goes_on(path)}
