"""Reads blobs again and compares them with their digests, on all cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from blake3 import blake3
from msgspec import Struct

from fuse_ckpt.model import Manifest

from .durable import CHUNK, chunks
from .layout import Layout

Progress = Callable[[int, int], None]  # bytes done, bytes in all

STEP = 0.1  # seconds between two words of progress
WIDE_CHUNK = 2 << 20  # bytes; BLAKE3's own threads want more at once than one of them


class Damage(Struct, frozen=True):
    """A file of a checkpoint whose bytes in the store are not the ones that were stored."""

    checkpoint: str  # id
    name: str  # JOB/NAME@N, or NAME@N
    path: str
    digest: str
    what: str  # is wrong with the blob
    shared: tuple[str, ...] = ()  # ids of the other checkpoints that hold the same bytes

    def __str__(self) -> str:
        return f"{self.checkpoint} ({self.name}): {self.path!r}: {self.what}."


def examine(
    layout: Layout,
    manifests: Sequence[Manifest],
    recorded: set[str],
    *,
    from_disk: bool = False,
    progress: Progress | None = None,
) -> list[Damage]:
    """Each file of `manifests` whose blob is missing, damaged, or named by no record (`recorded` are the digests).

    `from_disk`: have the kernel forget what it holds of a blob, so that the disk itself is read.
    """
    manifests = [_here(layout, one) if one.checkpoint.remote is not None else one for one in manifests]
    sizes = {entry.digest: entry.size for one in manifests for entry in (*one.entries, *one.companions) if entry.digest}
    wrong = _Verifier(layout, sizes, from_disk).run(progress)
    wrong |= {digest: f"blob {digest} has no record in the index" for digest in sizes.keys() - recorded - wrong.keys()}
    return [
        Damage(one.checkpoint.id, one.checkpoint.place, entry.path, entry.digest, what)
        for one in manifests
        for entry in (*one.entries, *one.companions)
        if (what := wrong.get(entry.digest))
    ]


def _here(layout: Layout, manifest: Manifest) -> Manifest:
    """What of a checkpoint whose bytes are in an object store is here too."""
    entries = tuple(entry for entry in manifest.entries if entry.digest and layout.blob(entry.digest).exists())
    return Manifest(manifest.checkpoint, entries)


class _Verifier:
    """Hashes blobs, the largest first, each on a core of its own; one that outweighs the others on all of them."""

    def __init__(self, layout: Layout, sizes: Mapping[str, int], from_disk: bool) -> None:
        self._layout = layout
        self._sizes = sizes
        self._from_disk = from_disk
        self._total = sum(sizes.values())
        self._cores = len(os.sched_getaffinity(0))
        self._done = 0
        self._counting = threading.Lock()
        self._stop = threading.Event()

    def run(self, progress: Progress | None) -> dict[str, str]:
        """What is wrong, by digest. Whatever ends it early (Ctrl-C) ends its threads first."""
        with ThreadPoolExecutor(self._cores, "verify") as pool:
            try:
                by_size = sorted(self._sizes, key=lambda digest: self._sizes[digest], reverse=True)
                running = {digest: pool.submit(self._verdict, digest) for digest in by_size}
                self._follow(set(running.values()), progress)
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return {digest: found for digest, future in running.items() if (found := future.result())}

    def _follow(self, running: set[Future[str]], progress: Progress | None) -> None:
        while running:
            running = wait(running, STEP if progress else None).not_done
            if progress is not None:
                progress(self._done, self._total)

    def _verdict(self, digest: str) -> str:
        """What is wrong with a blob; "" where nothing is."""
        try:
            fd = os.open(self._layout.blob(digest), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return f"blob {digest} is missing"
        except OSError as error:
            return f"blob {digest} cannot be read: {error.strerror}"
        try:
            size = os.fstat(fd).st_size
            if size != self._sizes[digest]:
                return f"blob {digest} has {size} bytes instead of {self._sizes[digest]}"
            same = self._digest(fd, size) == digest
        except OSError as error:
            return f"blob {digest} cannot be read: {error.strerror}"
        finally:
            os.close(fd)
        return "" if same else f"blob {digest} is damaged: its bytes have another digest"

    def _digest(self, fd: int, size: int) -> str:
        if self._from_disk:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        wide = size * self._cores > self._total and size > WIDE_CHUNK
        hasher = blake3(max_threads=self._cores if wide else 1)
        for chunk in chunks(fd, WIDE_CHUNK if wide else CHUNK):
            hasher.update(chunk)
            with self._counting:
                self._done += len(chunk)
            if self._stop.is_set():
                break
        return hasher.hexdigest()
