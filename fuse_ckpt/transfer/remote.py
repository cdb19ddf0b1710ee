"""One bucket of an object store, or a directory that stands for one: the few calls that we need, and our own errors."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import obstore
from msgspec import Struct
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError

from fuse_ckpt.errors import BucketMissing, CredentialsRefused, FuseCkptError, PermissionRefused, StorageFailed
from fuse_ckpt.model import Connection
from fuse_ckpt.transfer import connecting, lanes, once, places, selection, tree
from fuse_ckpt.transfer.complaints import complaint, translated

PART = 8 << 20  # bytes of a part of an upload, and of a ranged read
PARTS_MAX = 9_900  # of one object; S3 takes 10,000
PARTS_AT_ONCE = 10  # with PART bytes each
FILE_PARTS = 3  # of a file in a directory: there is no network to wait for, and a slow disk lets them pile up
MEMORY = 96 << 20  # bytes that the parts of one upload may hold together; larger parts mean fewer at once
READS_AT_ONCE = 4
LIST_CHUNK = 1000  # objects
LIST_TRIES = 5
SOME = 50  # objects
CREATE_TRIES = 5
CREATE_PAUSE = 0.05  # seconds, doubled with each try: a conflict is with who is at it just now
CREATED_MAX = 1 << 30  # bytes of what is found where something was to be created
_CERTAIN = (CredentialsRefused, PermissionRefused, BucketMissing)  # nothing can have landed

R = TypeVar("R")


class Found(Struct, frozen=True):
    """An object as a listing shows it. `modified_ns`: nanoseconds since the epoch."""

    key: str
    size: int
    modified_ns: int
    e_tag: str | None = None


class Remote:
    """A bucket of a connection. Thread-safe. `patience`: seconds that each request is tried again for.

    Every method raises StorageFailed or a subclass where the object store does not do what it was asked for.
    """

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        environment: connecting.Environment,
        patience: float = connecting.PATIENCE,
    ) -> None:
        self.connection = connection
        self.bucket = bucket
        self._where = connecting.where(connection)
        self._client = connecting.client(connection, bucket, environment, patience)
        first = min(patience, connecting.FIRST_PATIENCE)
        self._first = connecting.client(connection, bucket, environment, first)
        self._root = Path(connection.root) if connection.root is not None else None

    def refuse_ours(self, prefix: str, store: Path, option: str) -> None:
        """Raise UsageError where `prefix` is in a directory that lies in the store, or in a mount of ours."""
        if self._root is not None:
            places.refuse_ours(self._root / prefix, store, option)

    def list(self, prefix: str, *, first: bool = False, after: str | None = None) -> dict[str, Found]:
        """What lies below `prefix`, by key; the keys behind `after` alone. The `first` thing to ask is answered, or
        given up, soon."""
        client = self._first if first else self._client
        return self._paged(prefix, lambda: _listed(client, prefix, after))

    def directories(self, prefix: str) -> Sequence[str]:
        """The names that have something below them, right below `prefix`; in order."""
        found = self._paged(prefix, lambda: obstore.list_with_delimiter(self._client, prefix or None))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    @property
    def is_directory(self) -> bool:
        return self._root is not None

    def some(self, prefix: str) -> Sequence[str]:
        """Some of the keys below `prefix`, in one request; none only where there are none."""
        with self._asked(prefix):
            first = next(iter(obstore.list(self._first, prefix or None, chunk_size=SOME)), [])
            return [meta["path"] for meta in first]

    def reach(self) -> None:
        """See that the bucket is there, and the credentials are good, with a request for a single page.

        What serves a web page to whoever asks for whatever passes for an empty bucket; but it also has an object of a
        name that nobody can have given.
        """
        with self._asked(""):
            next(iter(obstore.list(self._first, "fuse-ckpt", chunk_size=1)), None)
        if self.get(f"fuse-ckpt-{uuid4().hex}", 1 << 20) is not None:
            raise StorageFailed(f"{self._where} does not answer as an object store would: check its --endpoint.")

    def head(self, key: str) -> Found | None:
        """The object `key`; None where there is none."""
        with self._asked(key):
            try:
                return _found(obstore.head(self._client, key))
            except FileNotFoundError as error:
                self._refuse_if_more(str(error), key)
                return None

    def get(self, key: str, limit: int) -> bytes | None:
        """A small object whole; None where there is none. StorageFailed also where it has more than `limit` bytes."""
        with self._asked(key):
            try:
                answer = obstore.get(self._client, key)
            except FileNotFoundError as error:
                self._refuse_if_more(str(error), key)
                return None
            if answer.meta["size"] > limit:
                raise StorageFailed(f"{self._where}: {self._place(key)} is too large to be what its name says.")
            return bytes(answer.bytes())

    def put(self, key: str, data: bytes) -> None:
        """A small object, whole or not at all; one that is there is replaced."""
        with self._asked(key):
            obstore.put(self._client, key, data, use_multipart=False)

    def create(self, key: str, data: bytes) -> bool:
        """A small object, unless there is one already; False then. Where the store cannot say so, it is replaced.

        An answer that was lost, or a conflict that let nothing land, is told from a loss by looking: whoever finds
        their own bytes there has won.
        """
        return self.claim(key, data) == data

    def claim(self, key: str, data: bytes, limit: int = CREATED_MAX) -> bytes:
        """As `create`; what is there now: `data`, or what was there before, which has to be within `limit`."""
        failed = StorageFailed(f"{self._where}: {self._place(key)} is neither made nor found: try again.")
        for attempt in range(CREATE_TRIES):
            try:
                if self._create_once(key, data):
                    return data
            except (NotSupportedError, NotImplementedError):
                self.put(key, data)
                return data
            except (AlreadyExistsError, PreconditionError):
                pass
            except (BaseError, OSError) as error:  # no answer, or none to be relied on: it may have landed
                failed = complaint(str(error), self._where, self._place(key))
                if isinstance(failed, _CERTAIN):
                    raise failed from None
            there = self.get(key, limit)
            if there is not None:
                return there
            time.sleep(CREATE_PAUSE * 2**attempt)
        raise failed

    def _create_once(self, key: str, data: bytes) -> bool:
        """False, or an error, where it was there. obstore makes a file without seeing that it is on the disk."""
        if self._root is not None:
            return once.create(self._root / key, data)
        obstore.put(self._client, key, data, mode="create", use_multipart=False)
        return True

    def upload(self, key: str, size: int, chunks: Callable[[int], Iterator[bytes]]) -> None:
        """An object of `size` bytes, whole or not at all. `chunks(n)` gives its bytes, n at a time, and may raise: then
        there is no object, and its error comes out of here."""
        part = max(PART, -(-size // PARTS_MAX) + (1 << 20) - 1 >> 20 << 20)
        with self._asked(key):
            if size <= 2 * PART:
                obstore.put(self._client, key, b"".join(chunks(part)), use_multipart=False)
                return
            at_once = max(1, min(PARTS_AT_ONCE if self._root is None else FILE_PARTS, MEMORY // part))
            obstore.put(self._client, key, chunks(part), use_multipart=True, chunk_size=part, max_concurrency=at_once)

    def read(self, found: Found, stop: lanes.Stop, start: int = 0) -> Iterator[memoryview]:
        """The bytes of an object from `start` on, a part at a time, some parts ahead. Errors: StorageFailed (also: it
        changed)."""
        ranges = [(at, min(at + PART, found.size)) for at in range(start, found.size, PART)]
        for part in lanes.ahead(READS_AT_ONCE, ranges, lambda bounds: self._part(found, *bounds)):
            stop.check()
            yield part

    def read_range(self, found: Found, start: int, end: int) -> memoryview:
        """Some bytes of an object. Errors: StorageFailed (also: it changed, or is shorter)."""
        return self._part(found, start, end)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        if keys and self.connection.provider in connecting.S3:  # a thousand with a request, and no word of absent ones
            with self._asked(keys[0]):
                obstore.delete(self._client, keys)
            return
        for key in keys:
            with self._asked(key), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._client, key)

    def drop_directory(self, prefix: str) -> None:
        """Remove what an empty prefix leaves in a directory, where it has a name of its own. Best effort."""
        if self._root is not None:
            with contextlib.suppress(OSError):
                (self._root / prefix).rmdir()

    def settle(self, prefix: str, keys: Sequence[str]) -> None:
        """Have what was put below `prefix` be on the disk: a directory does not see to it by itself, a store does."""
        if self._root is None:
            return
        names = {name for key in keys for name in (key, *selection.parents(key))}
        paths = [self._root, *(self._root / name for name in sorted(names))]
        try:
            if len(paths) > tree.FEW:
                tree.sync_disk(self._root / prefix)
            else:
                for path in paths:
                    tree.sync_path(path)
        except OSError as error:
            raise StorageFailed(f"{self._where}: {error.strerror}.") from None

    def _paged(self, prefix: str, ask: Callable[[], R]) -> R:
        with self._asked(prefix):
            for _ in range(LIST_TRIES - 1):
                try:
                    return ask()
                except BaseError as error:
                    if "response body" not in str(error):  # obstore asks again for all but an answer that is cut off
                        raise
            return ask()

    def _part(self, found: Found, start: int, end: int) -> memoryview:
        options: Any = {"range": (start, end)}
        if found.e_tag is not None:
            options["if_match"] = found.e_tag
        with self._asked(found.key):
            try:
                data = memoryview(obstore.get(self._client, found.key, options=options).bytes())
            except PreconditionError:
                raise self._changed(found.key) from None
            except FileNotFoundError as error:
                self._refuse_if_more(str(error), found.key)
                raise StorageFailed(f"{self._where}: {self._place(found.key)} is no longer there.") from None
        if len(data) != end - start:
            raise self._changed(found.key)
        return data

    def _changed(self, key: str) -> FuseCkptError:
        return StorageFailed(
            f"{self._where}: {self._place(key)} changed while it was read: try again when it is whole."
        )

    def _refuse_if_more(self, said: str, key: str) -> None:
        """Raise an error where it is not the object that is missing, but its bucket."""
        missing = complaint(said, self._where, self._place(key))
        if isinstance(missing, BucketMissing):
            raise missing

    def _asked(self, key: str) -> contextlib.AbstractContextManager[None]:
        return translated(self._where, self._place(key))

    def _place(self, key: str) -> str:
        return "/".join(part for part in (self.bucket, key) if part)


def _listed(client: connecting.Client, prefix: str, after: str | None) -> dict[str, Found]:
    chunks = obstore.list(client, prefix or None, offset=after, chunk_size=LIST_CHUNK)
    return {meta["path"]: _found(meta) for chunk in chunks for meta in chunk}


def _found(meta: Any) -> Found:
    modified = meta["last_modified"]
    ns = int(modified.timestamp()) * 10**9 + modified.microsecond * 1000
    return Found(meta["path"], meta["size"], ns, meta["e_tag"])
