"""The Delta table: what is in it, and its next version. The one module that imports deltalake.

A version is written only on top of the one that was read: deltalake is told not to try a commit again, so that it
fails (Outrun) where another one came between. What makes that sure is a conditional PUT of the commit, the same
primitive that decides on checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from fuse_ckpt.errors import Corrupt, UsageError
from fuse_ckpt.transfer import Access

from . import columns

NAME = "fuse-ckpt-catalog-1"  # the number is of the columns
DESCRIPTION = "One row a checkpoint. Made by fuse-ckpt from its decisions, which are what counts."
FILES = 100  # more of them are put together: each append leaves one
KEPT = 7 * 24  # hours that a file which no version has any more is kept for those who read an older one

_RAISED = (DeltaError, OSError, TypeError, ValueError)
_ONCE = CommitProperties(max_commit_retries=0)


class Outrun(Exception):
    """Another process has written a version since this one was read: read again."""


class Table:
    """The table at `access.uri`, as of when it was loaded. Rows that are written are taken: their list is empty then.

    Errors of all methods: StorageFailed (the object store does not do what it was asked for), Corrupt (what lies
    there cannot be read; it can be made anew).
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._table: DeltaTable | None = None

    @property
    def uri(self) -> str:
        return self._access.uri

    def load(self) -> bool:
        """Look at the newest version; False where there is no table. Errors: UsageError (it is not ours)."""
        self._table = None
        with self._told():
            try:
                found = DeltaTable(self._access.uri, storage_options=self._access.options)
            except TableNotFoundError:
                return False
            name = found.metadata().name
        if name != NAME:
            newer = str(name).startswith(NAME.rpartition("-")[0])
            whose = "made by another version of fuse-ckpt: use that one, or" if newer else "another's:"
            raise UsageError(f"The Delta table at {self.uri} is {whose} move it away, then sync again.")
        self._table = found
        return True

    def rows(self, predicate: str | None = None) -> Iterator[tuple[str, bytes]]:
        """The rows that fit, each with its id, in no order."""
        with self._told():
            for batch in self._loaded.scan(columns=list(columns.NAMES), predicate=predicate):
                yield from columns.packed_rows(batch)

    def count(self) -> int:
        with self._told():
            return self._loaded.count()

    def create(self, rows: list[bytes]) -> None:
        """Make it, with these rows. Errors: Outrun (it is there)."""
        with self._told():
            write_deltalake(
                self._access.uri, columns.reader(rows), mode="error", name=NAME, description=DESCRIPTION,
                storage_options=self._access.options, commit_properties=_ONCE,
            )  # fmt: skip
            self._table = DeltaTable(self._access.uri, storage_options=self._access.options)

    def append(self, rows: list[bytes]) -> None:
        """Errors: Outrun."""
        with self._told():
            write_deltalake(self._loaded, columns.reader(rows), mode="append", commit_properties=_ONCE)

    def replace(self, rows: list[bytes]) -> None:
        """Have these rows, and no others, from the next version on. Errors: Outrun."""
        with self._told():
            write_deltalake(
                self._loaded, columns.reader(rows), mode="overwrite", schema_mode="overwrite", commit_properties=_ONCE
            )

    def tidy(self, *, sweep: bool) -> None:
        """Put many small files together. Then, or to `sweep`, remove what no version of the last days has; that is
        looked for among all files. Errors: Outrun."""
        with self._told():
            if len(self._loaded.file_uris()) > FILES:
                self._loaded.optimize.compact(commit_properties=_ONCE)
                sweep = True
            if sweep and self._loaded.vacuum(retention_hours=KEPT, dry_run=True, full=True):
                self._loaded.vacuum(retention_hours=KEPT, dry_run=False, full=True)

    @property
    def _loaded(self) -> DeltaTable:
        assert self._table is not None
        return self._table

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What deltalake raises, as one of our errors: its messages hold URLs and answers."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, _RAISED) and type(error) is not Exception:  # arro3 raises just that
                raise
            said = self._access.complaint(str(error))
            if said is not None:
                raise said from None
            if isinstance(error, CommitFailedError) or "already exists" in str(error):
                raise Outrun from None
            raise Corrupt(
                f"The catalog at {self.uri} cannot be read: fuse-ckpt catalog sync --rebuild makes it anew."
            ) from error
