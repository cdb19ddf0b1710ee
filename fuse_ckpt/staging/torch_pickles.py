"""Are pickles whole: torch's format before zip, its distributed checkpoints' metadata, and plain ones?"""

from __future__ import annotations

import struct

from msgspec import Struct

from fuse_ckpt.staging.pickled import CutOff, Global, Machine, NoPickle, Stream, TooLong, walk
from fuse_ckpt.staging.reading import number_at, read_at

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number that opens it
_PREAMBLE = 3  # pickles before the value: that number, the protocol, the machine's sizes
_CUT_OFF = "is cut off: its pickle does not end"
_COUNT = struct.Struct("<q")
_ITEM_SIZES = {
    "ByteStorage": 1, "CharStorage": 1, "BoolStorage": 1, "QInt8Storage": 1, "QUInt8Storage": 1, "ShortStorage": 2,
    "HalfStorage": 2, "BFloat16Storage": 2, "IntStorage": 4, "FloatStorage": 4, "QInt32Storage": 4, "LongStorage": 8,
    "DoubleStorage": 8, "ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip


class Stored(Struct, frozen=True):
    """Where a distributed checkpoint's metadata says that something lies: at least `end` bytes of a file beside it."""

    path: str
    end: int


def fault_of_pickle(fd: int, size: int) -> str | None:
    """What a file lacks that begins as a pickle, in whichever form; what is none is taken as whole."""
    if read_at(fd, len(LEGACY_START), 0) == LEGACY_START:
        return _fault_of_legacy(fd, size)
    try:
        for _ in walk(Stream(fd, size)):
            pass
    except CutOff:
        return _CUT_OFF
    except (NoPickle, TooLong):
        return None
    return None


def _fault_of_legacy(fd: int, size: int) -> str | None:
    """The value's pickle is followed by the list of its storages' keys, and that by the storages in that order, each a
    count of items and its bytes."""
    storages: dict[str, int] = {}
    machine = Machine(persistent=lambda value: _note_storage(storages, value))
    stream = Stream(fd, size)
    try:
        for _ in range(_PREAMBLE + 2):
            machine.run(stream)
    except CutOff:
        return _CUT_OFF
    except (NoPickle, TooLong):
        return None
    at = stream.at
    for key in sorted(storages):
        count = number_at(fd, _COUNT, at)
        if count is None or count < 0:
            return "is cut off in its tensors"
        if not storages[key]:
            return None  # items of a size that is not known here
        at += _COUNT.size + count * storages[key]
    return "is cut off in its tensors" if at > size else None


def _note_storage(storages: dict[str, int], value: object) -> None:
    """Key → bytes of an item; 0 for a type that is not known."""
    match value:
        case ("storage", Global(_, name), str() as key, *_):
            storages[key] = _ITEM_SIZES.get(name, 0)


def stored(fd: int, size: int) -> list[Stored]:
    """What a distributed checkpoint's metadata says of the files beside it, the farthest place in each.

    Nothing where it is no such pickle, or too long. Raises CutOff.
    """
    ends: dict[str, int] = {}

    def built(made: Global, state: dict[object, object]) -> None:
        path, offset, length = (state.get(key) for key in ("relative_path", "offset", "length"))
        if made.name == "_StorageInfo" and isinstance(path, str):
            end = offset + length if isinstance(offset, int) and isinstance(length, int) else 0
            ends[path] = max(end, ends.get(path, 0))

    try:
        Machine(built=built).run(Stream(fd, size))
    except (NoPickle, TooLong):
        return []
    return [Stored(path, end) for path, end in ends.items()]
