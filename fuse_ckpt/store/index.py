"""The index: one LMDB environment, whose transactions run one at a time under locks of our own.

LMDB's own lock file keys readers by pid, and two daemons that are both pid 1 of their containers could not open one
environment. So it is opened with `lock=False` under flock(locks/index): shared for one read transaction and for opening
what is there, exclusive for one write transaction. A mutex orders the threads of this process: the map may only be
moved (to grow it) while none of them is inside a transaction. A transaction therefore belongs to one call on one
thread, and must stay short.

An Index survives fork() only between `before_fork` and `after_fork`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock as Mutex
from typing import TypeVar

import lmdb

from fuse_ckpt.errors import CorruptRecord, FuseCkptError, StoreUnusable

from . import locks
from .format import is_read_only, read_only
from .index_file import lacking_length, make_long_enough
from .records import Records
from .tables import Table

T = TypeVar("T")

DATA = "data.mdb"
MAP_SIZE = 1 << 30  # bytes of address space, not of disk; it doubles when it is full
RENEWAL = 256  # writes; with 100,000 checkpoints each leaves some 50 KiB of the map's pages with the process
NEARLY_FULL = 1 << 20  # bytes: with less than this left on the disk, LMDB's "Input/output error" means a full disk
DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


class Index:
    """Runs functions over `Records` in transactions of the environment in `directory`."""

    def __init__(self, directory: Path, lock: Path, map_size: int = MAP_SIZE) -> None:
        self._directory = directory
        self._lock = lock
        self._map_size = map_size
        self._mutex = Mutex()
        self._generation = 0
        self._before = 0  # the generation of the file that this one has replaced
        self._file: tuple[int, int] | None = None  # device and inode of what is open
        self._writes = 0
        self._read_only = False
        self._env: lmdb.Environment | None = None
        self._tables: dict[Table, lmdb._Database] = {}
        self.problems: dict[str, None] = {}  # an ordered set of sentences
        self.read(lambda records: None)

    def read(self, work: Callable[[Records], T]) -> T:
        """What `work` returns, from one consistent state. Errors: CorruptRecord, OSError."""
        with self._mutex:
            while True:
                if self._env is None:
                    self._open()
                with locks.shared(self._lock):
                    if not self._is_replaced():
                        return self._run(work, write=False)
                self._drop()

    def write(self, work: Callable[[Records], T]) -> T:
        """What `work` returns, once all that it wrote is on the disk; all or nothing. `work` may run more than once.

        Errors: CorruptRecord, StoreUnusable (the disk is read-only), OSError (ENOSPC where the disk is full).
        """
        with self._mutex, locks.exclusive(self._lock):
            if self._is_replaced():
                self._drop()
            if self._env is None:
                self._open_locked()
            if self._read_only:
                raise StoreUnusable(read_only(self._directory.parent))
            result = self._run(work, write=True)
            self._writes += 1
            if self._writes % RENEWAL == 0:
                self._drop()
                with suppress(OSError, FuseCkptError):  # what was written is; the next call opens it, or says why not
                    self._open_locked()
            return result

    def generation(self) -> int:
        """A number that rises with every commit of any process. Never waits.

        While a thread of this process is in a transaction it may be a moment old, but never older than this process's
        own last commit.
        """
        if not self._mutex.acquire(blocking=False):
            return self._generation
        try:
            if self._is_replaced():
                self._drop()
                self._generation += 1
            self._note_generation()
            return self._generation
        finally:
            self._mutex.release()

    def renew(self) -> None:
        """Open the environment anew: pages of its map that were looked at count no more as memory of this process."""
        with self._mutex, locks.exclusive(self._lock):
            self._drop()
            self._open_locked()

    def close(self) -> None:
        with self._mutex:
            self._drop()

    def before_fork(self) -> None:
        """Wait until no thread is inside LMDB, and let none in: a child cannot close what one was using."""
        self._mutex.acquire()

    def after_fork(self, *, child: bool) -> None:
        """Go on; in the child, let go of what the parent opened, which is not disturbed by it."""
        if child:
            self._drop()
        self._mutex.release()

    def _run(self, work: Callable[[Records], T], *, write: bool) -> T:
        while True:
            try:
                return self._attempt(work, write)
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.MapResizedError:  # another process grew it
                self._environment.set_mapsize(0)
            except lmdb.Error as error:
                self._drop()  # after a failed commit LMDB refuses everything until it is opened again
                raise self._translate(error) from error

    def _attempt(self, work: Callable[[Records], T], write: bool) -> T:
        with self._environment.begin(write=write) as transaction:
            result = work(Records(transaction, self._tables, self.problems))
        if write:
            self._note_generation()
        return result

    @property
    def _environment(self) -> lmdb.Environment:
        assert self._env is not None
        return self._env

    def _open(self) -> None:
        with locks.shared(self._lock):  # a command begins while another one reads, however long that takes
            if self._open_whole():
                return
        with locks.exclusive(self._lock):  # the very first opening writes the file
            self._open_locked()

    def _open_whole(self) -> bool:
        """Open an index that can be used as it is; False where something would have to be written first."""
        data = self._directory / DATA
        if not data.exists() or data.stat().st_size == 0:
            return False
        self._read_only = is_read_only(data)
        if not self._read_only and lacking_length(data) is not None:
            return False
        try:
            self._env = self._environment_of(create=False)
            self._find_tables()
        except lmdb.Error:  # the other way says why
            self._drop()
            return False
        if len(self._tables) < len(Table) and not self._read_only:
            self._drop()
            return False
        self._note_file()
        return True

    def _open_locked(self) -> None:
        data = self._directory / DATA
        self._read_only = is_read_only(data)
        if not self._read_only:
            make_long_enough(data)
        try:
            self._env = self._environment_of(create=not self._read_only)
            self._make_tables()
        except lmdb.Error as error:
            self._drop()
            raise self._translate(error) from error
        self._note_file()

    def _environment_of(self, *, create: bool) -> lmdb.Environment:
        return lmdb.open(
            str(self._directory), map_size=self._map_size, max_dbs=len(Table), mode=0o600, lock=False,
            max_spare_txns=0, lib_version=0,  # the file's format is fixed by the library that creates it
            readonly=self._read_only, create=create,
        )  # fmt: skip

    def _note_file(self) -> None:
        found = _identity(self._directory / DATA)
        if self._file not in (None, found):
            self._before = self._generation  # the new file counts from the beginning
        self._file = found

    def _is_replaced(self) -> bool:
        """Whether a rebuild has put another file in the place of what is open. Of one that has gone, that is all that
        there is."""
        return self._env is not None and _identity(self._directory / DATA) not in (None, self._file)

    def _make_tables(self) -> None:
        if self._read_only:
            self._find_tables()
            return
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    self._tables = {
                        table: self._environment.open_db(table.value.encode(), txn=transaction) for table in Table
                    }
                return
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])
            except lmdb.MapResizedError:
                self._environment.set_mapsize(0)

    def _find_tables(self) -> None:
        """All that have been made: what an older version wrote lacks the newer ones. Nothing is written."""
        self._tables = {}
        for table in Table:
            with suppress(lmdb.NotFoundError):
                self._tables[table] = self._environment.open_db(table.value.encode(), create=False)

    def _note_generation(self) -> None:
        if self._env is not None:
            self._generation = max(self._generation, self._before + self._env.info()["last_txnid"])

    def _drop(self) -> None:
        env, self._env, self._tables = self._env, None, {}
        if env is not None:
            env.close()

    def _translate(self, error: lmdb.Error) -> Exception:
        if isinstance(error, DAMAGED):
            return CorruptRecord(f"The index {self._directory} is damaged ({error}).")
        disk = os.statvfs(self._directory)
        full = disk.f_bavail * disk.f_frsize < NEARLY_FULL
        return OSError(errno.ENOSPC if full else errno.EIO, f"{error}", str(self._directory))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
