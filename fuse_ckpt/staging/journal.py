"""A sealed draft on disk: pending/<draft>/ holds a link to each member and a journal that says what they are.

The links are made first and the journal is renamed into place last, so a directory without a journal is a seal that
never happened, and may be dropped: whoever wanted to destroy a member was still waiting for the seal. A member that
somebody may write again is copied, not linked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fuse_ckpt.faults import fault
from fuse_ckpt.model import Entry, InodeKey, Kind, Unit
from fuse_ckpt.staging.worktree import Found, Scan, WorkTree, changed

_log = logging.getLogger(__name__)

_JOURNAL = "journal.json"
_NEW_JOURNAL = "journal.json.new"
_ERROR = "error"
_UNSYNCED = "unsynced"


class Linked(Struct, frozen=True):
    """A member of a sealed draft: its entry-to-be, and the name of its link in the draft's directory."""

    path: str  # relative to the output directory's root
    kind: Kind
    mode: int
    mtime_ns: int
    size: int
    key: InodeKey
    target: str = ""
    link: str = ""  # files only
    companion: bool = False

    def entry(self, prefix: str, digest: str) -> Entry:
        """The manifest's entry; a member's path loses the unit's `prefix`, a companion's stays whole."""
        path = self.path if self.companion or not prefix else self.path[len(prefix) + 1 :]
        return Entry(path, self.kind, self.mode, self.mtime_ns, self.size, digest, self.target)


class Journal(Struct, frozen=True):
    """All that is known of a sealed draft, enough to commit it in another process after a crash."""

    unit: Unit
    created_ns: int
    sealed_ns: int
    files: tuple[Linked, ...]
    node: str = "0"
    parent: str | None = None
    run: str | None = None
    failure: str | None = None  # why it will be committed as `failed`
    recovered: bool = False  # found in the working tree at a mount: dropped where it is what is committed already
    amends: str = ""  # the sealed draft that this one only adds files to, as far as could be seen
    hasty: bool = False  # sealed before somebody destroyed it: its content was not looked at closely
    described: tuple[str, ...] = ()  # directories of it whose .metadata was seen to come after all that it describes
    part: int | None = None  # the rank of its node, where several write the checkpoint


class Sealed(Struct, frozen=True):
    """A sealed draft: its directory below pending/ and its journal."""

    directory: Path
    journal: Journal

    @property
    def keys(self) -> list[InodeKey]:
        return [linked.key for linked in self.journal.files if linked.link]

    def source(self, linked: Linked) -> Path:
        return self.directory / linked.link

    def take(self) -> None:
        """From here on it is sealed, whatever happens."""
        (self.directory / _NEW_JOURNAL).rename(self.directory / _JOURNAL)
        fault("seal:done")

    def sync(self) -> None:
        """Make the seal itself survive a power cut; slow, so it is left to whoever commits."""
        for path in (self.directory / _JOURNAL, self.directory, self.directory.parent):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def note_error(self, text: str) -> None:
        """Leave beside the journal why it could not be committed; best effort, the disk may be the reason."""
        try:
            (self.directory / _ERROR).write_text(text, errors="backslashreplace")
        except OSError:
            return

    def distrust(self, failure: str = "") -> None:
        """Note that the disk failed: nothing is linked any more, all is copied. Best effort.

        `failure`: of a member that could not be written, of which the kernel may have dropped what it had.
        """
        with contextlib.suppress(OSError):
            (self.directory / _UNSYNCED).write_text(failure, errors="backslashreplace")

    def distrusted(self) -> str | None:
        """None where nothing failed; else the failure that `distrust` was told, perhaps none ("")."""
        try:
            return (self.directory / _UNSYNCED).read_text()
        except FileNotFoundError:
            return None

    def discard(self) -> None:
        """Remove the links and the journal; the journal first, so that a half-removed draft is no draft."""
        (self.directory / _JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(self.directory)


def prepare(tree: WorkTree, pending: Path, scan: Scan, journal: Journal, copied: Collection[InodeKey] = ()) -> Sealed:
    """Link the members of `scan` below `pending` (copy those of `copied`) and write the journal, which `take` makes
    count. Raises OSError, leaving nothing behind."""
    directory = pending / uuid.uuid4().hex
    directory.mkdir(mode=0o700)
    try:
        files = [
            *_keep_all(tree, directory, scan.members, copied), *_keep_all(tree, directory, scan.companions, (), True)
        ]  # fmt: skip
        fault("seal:linked")
        sealed = Sealed(directory, replace(journal, files=tuple(files)))
        (directory / _NEW_JOURNAL).write_text(_encoded(sealed.journal))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return sealed


def seal(tree: WorkTree, pending: Path, scan: Scan, journal: Journal) -> Sealed:
    """`prepare` and `take` in one step. Raises OSError, leaving nothing behind."""
    sealed = prepare(tree, pending, scan, journal)
    try:
        sealed.take()
    except OSError:
        sealed.discard()
        raise
    return sealed


def _encoded(journal: Journal) -> str:
    """As JSON. By json, not msgspec: it writes the surrogates of names that are no UTF-8 as \\udcXX. Each file by
    itself: a hundred thousand in one call would keep the event loop waiting for a second."""
    files = ", ".join(json.dumps(msgspec.to_builtins(linked)) for linked in journal.files)
    head = msgspec.to_builtins(replace(journal, files=()))
    del head["files"]
    return f'{json.dumps(head)[:-1]}, "files": [{files}]}}'


def load_all(pending: Path, *, clean: bool) -> list[Sealed]:
    """The sealed drafts of `pending`, oldest first. `clean`: directories without a journal are removed."""
    found: list[Sealed] = []
    for directory in pending.iterdir():
        try:
            content = json.loads((directory / _JOURNAL).read_text())
            found.append(Sealed(directory, msgspec.convert(content, Journal)))
        except (FileNotFoundError, NotADirectoryError):
            if clean:
                shutil.rmtree(directory, ignore_errors=True)
        except (ValueError, msgspec.MsgspecError) as exc:  # torn by a power cut; its links may be the only copy
            if clean:
                _log.warning("%s has a journal that cannot be read, it is kept but not committed: %s", directory, exc)
    return sorted(found, key=lambda sealed: sealed.journal.sealed_ns)


def why_stuck(sealed: Sealed) -> str | None:
    """What kept this draft from being committed the last time, if something did."""
    try:
        return (sealed.directory / _ERROR).read_text()
    except OSError:
        return None


def _keep_all(
    tree: WorkTree, directory: Path, members: tuple[Found, ...], copied: Collection[InodeKey], companion: bool = False
) -> list[Linked]:
    kept = []
    for number, found in enumerate(members):
        name, key = "", found.key
        if found.kind is Kind.FILE:
            name = f"{'c' if companion else 'm'}{number}"
            key = _keep(tree, found, directory / name, found.key in copied)
        kept.append(
            Linked(found.path, found.kind, found.mode, found.mtime_ns, found.size, key, found.target, name, companion)
        )
    return kept


def _keep(tree: WorkTree, found: Found, where: Path, copied: bool) -> InodeKey:
    """Give the file the name `where`, or a copy of it; returns the inode that has that name now."""
    if copied:
        tree.copy(found, where)
    else:
        os.link(found.path, where, src_dir_fd=tree.root_fd, follow_symlinks=False)
    status = os.stat(where, follow_symlinks=False)
    key = InodeKey(status.st_dev, status.st_ino)
    if key != found.key and not copied:
        raise changed(found.path)
    return key
