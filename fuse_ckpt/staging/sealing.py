"""From a draft that looks finished to a sealed one: asks whether anybody can still write it, and links its files."""

from __future__ import annotations

import time
from pathlib import Path

from msgspec.structs import replace

from fuse_ckpt.model import Kind
from fuse_ckpt.staging import journal
from fuse_ckpt.staging.drafts import Draft
from fuse_ckpt.staging.journal import Journal, Sealed
from fuse_ckpt.staging.open_files import OpenFiles
from fuse_ckpt.staging.sealed import SealedInodes
from fuse_ckpt.staging.settings import Settings
from fuse_ckpt.staging.worktree import Found, Scan, WorkTree


class Sealer:
    """Seals drafts of one working tree into `pending`. May be asked in a thread, if the draft does not change then."""

    def __init__(
        self, tree: WorkTree, pending: Path, settings: Settings, sealed: SealedInodes, open_files: OpenFiles
    ) -> None:
        self._tree = tree
        self._pending = pending
        self._settings = settings
        self._sealed = sealed
        self._open = open_files
        self._newest_ns = 0  # of all seals: their order is that of their times, also when the clock goes back

    def follow(self, *drafts: Sealed) -> None:
        """These are sealed; whatever is from now on comes after them."""
        self._newest_ns = max(self._newest_ns, *(draft.journal.sealed_ns for draft in drafts), 0)

    def prepare(self, draft: Draft, scan: Scan, failure: str | None, *, hasty: bool = False) -> Sealed | None:
        """Everything but the last step; None where somebody can still write one of its files. Raises OSError.

        What was left open by a writer that has gone is copied; not in haste, when everybody waits.
        """
        written = {one.key for one in scan.files if self._may_be_written(one)}
        if written and (hasty or not written <= self._open.left_open()):
            return None
        # A pointer that is being written is left out: a link would seal it under its writer's hands.
        companions = (one for one in scan.companions if one.kind is not Kind.FILE or not self._may_be_written(one))
        scan = replace(scan, companions=tuple(companions))
        record = self._record(draft, scan, failure, hasty=hasty)
        return journal.prepare(self._tree, self._pending, scan, record, written)

    def _may_be_written(self, found: Found) -> bool:
        return found.key not in self._sealed and (found.key in self._open or self._tree.is_written(found))

    def _record(self, draft: Draft, scan: Scan, failure: str | None, *, hasty: bool) -> Journal:
        newest = max((found.mtime_ns for found in scan.files), default=time.time_ns())
        amends = draft.amends.draft if draft.amends is not None and draft.amends.is_added_to(scan) else ""
        settings = self._settings
        sealed_ns = max(time.time_ns(), self._newest_ns + 1)
        run = settings.run_at(newest) if draft.recovered else settings.run
        return Journal(
            draft.unit, draft.created_ns or newest, sealed_ns, (), settings.node, settings.parent, run,
            failure, draft.recovered, amends, hasty, tuple(sorted(draft.described)), settings.part,
        )  # fmt: skip
