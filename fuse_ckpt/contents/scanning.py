"""What the pickles of a file would import and call when it is loaded. Nothing of it is."""

from __future__ import annotations

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator

from fuse_ckpt.contents import allowed
from fuse_ckpt.contents.archives import START as ZIP_START
from fuse_ckpt.contents.archives import Archive, Member
from fuse_ckpt.contents.machine import run
from fuse_ckpt.contents.numpy_files import MAGIC as NPY_START
from fuse_ckpt.contents.numpy_files import array_header
from fuse_ckpt.contents.opcodes import Budget
from fuse_ckpt.contents.reading import BROKEN, MIB, Decompressor, Inflating, NoPickle, TooMuch, Unreadable, Window
from fuse_ckpt.contents.report import Report
from fuse_ckpt.contents.torch_files import LEGACY_PREAMBLE, LEGACY_START, is_script, is_torch, storage_places
from fuse_ckpt.model import SCAN_RULES, Scan

INFLATED_MAX = 64 * MIB
LZMA_MAX = 128 * MIB  # of memory; xz -9 asks for 65 MiB, a hostile file for 4 GiB
DEPTH_MAX = 3  # files within files
PARTS_MAX = 1_000_000  # of zip files, all together
DOUBTS_MAX = 20
ZIP_END, ZIP_END_MAX = b"PK\x05\x06", 22 + 0xFFFF  # how it begins; with the longest comment

_PICKLE_NAME = re.compile(r".*\.(pt|pth|ckpt|bin|pkl|pickle|p|joblib|dill|distcp)", re.IGNORECASE | re.DOTALL)
_RECORDS_NAME = re.compile(r"(__\d+)?\.metadata")
_BINARY_PICKLES = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_COMPRESSED_NAME = re.compile(r"(.*)\.(gz|tgz|bz2|xz|lzma|z)", re.IGNORECASE | re.DOTALL)
_ARCHIVE_NAME = re.compile(r".*\.(zip|npz|keras)", re.IGNORECASE | re.DOTALL)
_COMPRESSED: dict[bytes, Callable[[], Decompressor]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    b"x\x01": zlib.decompressobj,
    b"x\x5e": zlib.decompressobj,
    b"x\x9c": zlib.decompressobj,
    b"x\xda": zlib.decompressobj,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=LZMA_MAX),
    b"]\x00\x00": lambda: lzma.LZMADecompressor(memlimit=LZMA_MAX),
}
_OTHER_COMPRESSED = (b"\x04\x22\x4d\x18", b"\x28\xb5\x2f\xfd")  # lz4, zstd
_TAR_SUM = slice(148, 156)  # in the header of 512 bytes


def scan_file(window: Window, path: str) -> Scan:
    """What loading the file would import and call; without pickles and safe where it holds none. Raises OSError."""
    scanner = _Scanner(allowed.WEIGHTS | allowed.RECORDS if is_records(path) else allowed.WEIGHTS)
    scanner.attempt(lambda: scanner.file(window, path.rpartition("/")[2], 0))
    return scanner.result()


def scan_parts(window: Window, parts: Iterable[tuple[int, int]]) -> Scan:
    """As `scan_file`, of a file of which each (place, length) is loaded as a file of its own."""
    scanner = _Scanner(allowed.WEIGHTS)
    for start, length in parts:
        scanner.attempt(lambda at=start, count=length: scanner.file(window.part(at, count), "part.pt", 0))  # type: ignore[misc]
    return scanner.result()


def is_records(path: str) -> bool:
    """Whether the file is read as torch.distributed.checkpoint's `.metadata`."""
    return _RECORDS_NAME.fullmatch(path.rpartition("/")[2]) is not None


def how_read(path: str) -> str:
    """What of a file's name decides how it is looked at."""
    if is_records(path):
        return "records"
    return "pickle" if _PICKLE_NAME.fullmatch(path) or _COMPRESSED_NAME.fullmatch(path) else "any"


class _Scanner:
    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._report = Report()
        self._budget = Budget()
        self._doubts: dict[str, None] = {}
        self._pickles = 0
        self._parts = 0
        self._inside: tuple[str, ...] = ()  # how names begin that are in the file itself

    def result(self) -> Scan:
        names = self._report.names
        others = tuple(name for name in names if name not in self._names and not name.startswith(self._inside))
        return Scan(
            rules=SCAN_RULES,
            pickles=self._pickles,
            allowed=tuple(name for name in names if name in self._names),
            others=others,
            called=tuple(name for name in others if names[name]),
            oddities=tuple(self._report.oddities),
            doubts=tuple(self._doubts),
        )

    def attempt(self, work: Callable[[], None]) -> None:
        """Do it; what cannot be read is a doubt."""
        try:
            work()
        except Unreadable as error:
            self._doubt(str(error))
        except MemoryError:
            self._doubt("is too large to be read here")
        except BROKEN:
            self._doubt("is cut off or broken")

    def file(self, window: Window, name: str, depth: int) -> None:
        start = window.peek(512)
        if depth > DEPTH_MAX:
            self._doubt("has files in files in files, which were not read")
        elif start.startswith(ZIP_START):
            self._archive(window, depth)
        elif start.startswith(NPY_START):
            self._array(window)
        elif start.startswith(_BINARY_PICKLES):
            self._stream(window, start)
        elif _is_tar(start):
            self._doubt("is a tar file; what is in it was not read")
        elif (compressed := _COMPRESSED_NAME.fullmatch(name)) or _PICKLE_NAME.fullmatch(name) or is_records(name):
            self._by_name(window, compressed[1] if compressed else name, start, depth)
        elif _ARCHIVE_NAME.fullmatch(name) and _ends_as_zip(window):
            self._doubt("ends as a zip file and does not begin as one")

    def _by_name(self, window: Window, name: str, start: bytes, depth: int) -> None:
        """A file that only its name calls a pickle: it is compressed, or of a protocol without a mark."""
        engine = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
        if engine is not None:
            self.file(_memory(_inflated(window, engine)), name, depth + 1)
        elif start.startswith(_OTHER_COMPRESSED):
            self._doubt("is compressed in a way that is not read here")
        elif _ends_as_zip(window):
            self._doubt("ends as a zip file and does not begin as one")
        else:
            self._perhaps_pickle(window, start)

    def _perhaps_pickle(self, window: Window, start: bytes) -> None:
        try:
            self._stream(window, start)
        except NoPickle:
            # No unpickler gets further: it matters only if something was to be imported before that.
            if self._pickles or self._report.names or self._report.oddities:
                raise

    def _doubt(self, what: str) -> None:
        if len(self._doubts) < DOUBTS_MAX:
            self._doubts[what] = None

    # pickles

    def _stream(self, window: Window, start: bytes) -> None:
        stream = window.stream()
        if not start.startswith(LEGACY_START):
            self._pickles_to_end(stream, window.length)
            return
        for _ in range(LEGACY_PREAMBLE + 1):
            self._run(stream)
        for _ in storage_places(stream, self._run(stream), self._report, window.length):
            pass
        if stream.tell() != window.length:
            self._doubt("has bytes after its tensors")
            self._pickles_to_end(stream, window.length)

    def _pickles_to_end(self, stream: io.BufferedReader, length: int) -> None:
        """All the pickles, one after another: a program may load more than the first."""
        self._run(stream)
        while stream.tell() < length:
            report, self._report = self._report, Report()
            try:
                self._run(stream)
            except TooMuch:
                raise
            except BROKEN as error:
                self._report.keep(_is_a_name)  # others are what any bytes look like
                raise Unreadable("has bytes after its pickle that are none") from error
            finally:
                report.add(self._report)
                self._report = report

    def _run(self, stream: io.BufferedReader) -> object:
        value = run(stream, self._report, self._budget)
        self._pickles += 1
        values, self._report.values = self._report.values, []
        for data in values:
            self._value(data)
        return value

    def _value(self, data: bytes) -> None:
        """A value that may be a pickle: what would be imported by whoever unpickles that too."""
        inner = Report()
        try:
            run(_memory(data).stream(), inner, self._budget)
        except TooMuch:
            raise
        except BROKEN:
            pass
        if others := [name for name in inner.names if name not in self._names]:
            self._report.odd(f"carries another pickle, which imports {', '.join(others[:5])}")
        if inner.oddities:
            self._report.odd(f"carries another pickle, which {next(iter(inner.oddities))}")

    # files that hold others

    def _archive(self, window: Window, depth: int) -> None:
        if self._parts > PARTS_MAX:
            raise TooMuch(f"has zip files of more than {PARTS_MAX:,} parts, which were not read")
        archive = Archive(window)
        self._parts += len(archive.members)
        archive.check()
        for oddity in archive.oddities:
            self._report.odd(oddity)
        by_torch = is_torch(archive)
        if by_torch and is_script(archive):
            self._report.odd("holds TorchScript, which runs when it is loaded and was not looked into")
            self._inside = ("__torch__.",)
        if not by_torch and not all(member.name.endswith(".npy") for member in archive.members):
            self._doubt("is a zip file that neither torch nor numpy wrote: only the pickles in it were looked at")
        for member in _loaded(archive, by_torch):
            self.attempt(lambda one=member: self.file(_as_window(archive, one), one.name, depth + 1))  # type: ignore[misc]

    def _array(self, window: Window) -> None:
        header = array_header(window)
        if header.holds_objects:
            objects = window.part(header.data_at, window.length - header.data_at)
            self._pickles_to_end(objects.stream(), objects.length)


def _loaded(archive: Archive, by_torch: bool) -> Iterator[Member]:
    """The members that a loader would unpickle; torch's tensors it reads as bytes, whatever they look like."""
    raw = (f"{archive.top}data/", f"{archive.top}constants/") if by_torch else ()
    for member in archive.members:
        if (_PICKLE_NAME.fullmatch(member.name) or member.name.lower().endswith((".npy", ".npz", ".zip"))) and not (
            raw and member.name.startswith(raw)
        ):
            yield member


def _as_window(archive: Archive, member: Member) -> Window:
    opened = archive.opened(member)
    return opened if isinstance(opened, Window) else _memory(archive.content(member, INFLATED_MAX))


def _is_tar(start: bytes) -> bool:
    """By the sum in its first header: the oldest kind of tar has no other mark, and torch's loader tries it first."""
    if len(start) < 512:
        return False
    try:
        told = int(start[_TAR_SUM].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return told == sum(start[:148]) + 8 * ord(" ") + sum(start[156:])


def _ends_as_zip(window: Window) -> bool:
    """Programs that look for a zip file's end would take it for one."""
    length = min(window.length, ZIP_END_MAX)
    return ZIP_END in window.read(window.length - length, length)


def _is_a_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _memory(data: bytes) -> Window:
    return Window.whole(io.BytesIO(data))


def _inflated(window: Window, engine: Callable[[], Decompressor]) -> bytes:
    """All that a compressed file holds. Raises TooMuch, Unreadable."""
    source = Inflating(window, 0, engine)
    data = b"".join(source.pieces(INFLATED_MAX + 1))
    if len(data) > INFLATED_MAX:
        raise TooMuch("holds more than 64 MiB compressed, which was not read")
    return data
