"""What a mount is told about staging."""

from __future__ import annotations

from msgspec import Struct

from fuse_ckpt.staging.policy import QuietPeriods


class Settings(Struct, frozen=True):
    """How a mount stages, and what each checkpoint of it is recorded with.

    `units`: globs that override the rules for units; `quiet_period`: seconds, in place of the two long ones; `part`:
    this node's rank, where several write each checkpoint; `runs`: the job's, when each began (ns) and its id, in order.
    """

    units: tuple[str, ...] = ()
    quiet_period: float | None = None
    node: str = "0"
    run: str | None = None
    parent: str | None = None  # the checkpoint that the run resumed from
    part: int | None = None
    runs: tuple[tuple[int, str], ...] = ()

    def run_at(self, ns: int) -> str | None:
        """Whose work it is that was found in the working tree at a mount, and was written last at `ns`.

        The newest run that had begun by then. Were it this one, it would pass for a part of what the other nodes save
        under that name in this run.
        """
        return next((run for began, run in reversed(self.runs) if began <= ns), self.run)

    @property
    def periods(self) -> QuietPeriods:
        quiet = self.quiet_period
        return QuietPeriods() if quiet is None else QuietPeriods(quiet=quiet, quiet_many=quiet, hint=min(quiet, 5.0))
