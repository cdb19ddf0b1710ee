"""A writer of checkpoints that prove themselves: `python -m scripts.ordeals.writer HABIT DIRECTORY NAME SEED [COUNT]`.

Each file is a whole safetensors file whose header holds the digest of its data, so whoever reads it can tell whether it
is what somebody wrote. Before it touches a path it prints `begin PATH`, and after the close `done PATH DIGEST` (the
store's own, of the whole file), or `gone PATH`: what lies between the two is nobody's promise.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

LARGEST = 300_000  # bytes of a file's data
KEPT = 2  # checkpoints that the rotating habit leaves


class Writer:
    """Writes below `directory` under names that begin with `name`; what it writes follows from `seed`."""

    def __init__(self, directory: Path, name: str, seed: int) -> None:
        self._directory = directory
        self._name = name
        self._random = random.Random(seed)

    def overwrite(self) -> Iterator[None]:
        """One file, again and again, as `torch.save` to a fixed name."""
        while True:
            self._save(self._directory / f"{self._name}.safetensors")
            yield

    def replace(self) -> Iterator[None]:
        """One file, written beside and renamed over."""
        path = self._directory / f"{self._name}.safetensors"
        while True:
            spare = path.with_name(f".tmp-{path.name}")
            digest = _write(spare, self._random)
            _say("begin", path)
            os.replace(spare, path)
            _say("done", path, digest)
            yield

    def rotate(self) -> Iterator[None]:
        """Directories, a state file last, the oldest removed."""
        number = self._random.randrange(1000) * 1000
        kept = sorted(self._directory.glob(f"checkpoint-{self._name}-*"))  # of the run before
        while True:
            number += 1
            directory = self._directory / f"checkpoint-{self._name}-{number}"
            directory.mkdir()
            for part in ("model.safetensors", "optimizer.safetensors"):
                self._save(directory / part)
            state = directory / "trainer_state.json"
            _say("begin", state)
            text = json.dumps({"global_step": number, "log_history": []}).encode()
            state.write_bytes(text)
            _say("done", state, blake3(text).hexdigest())
            kept.append(directory)
            while len(kept) > KEPT:
                self._remove(kept.pop(0))
            yield

    def into_place(self) -> Iterator[None]:
        """Directories that get their names when they are complete."""
        number = self._random.randrange(1000) * 1000
        for left in self._directory.glob(f"step-{self._name}-*"):  # by the run before
            self._remove(left)
        while True:
            number += 1
            directory = self._directory / f"step-{self._name}-{number}"
            spare = directory.with_name(f"{directory.name}.tmp")
            spare.mkdir()
            digest = _write(spare / "model.safetensors", self._random)
            _say("begin", directory / "model.safetensors")
            spare.rename(directory)
            _say("done", directory / "model.safetensors", digest)
            yield
            self._remove(directory)

    def _save(self, path: Path) -> None:
        _say("begin", path)
        _say("done", path, _write(path, self._random))

    def _remove(self, directory: Path) -> None:
        paths = sorted(directory.iterdir())
        for path in paths:
            _say("begin", path)
        shutil.rmtree(directory)
        for path in paths:
            _say("gone", path)


HABITS: dict[str, Callable[[Writer], Iterator[None]]] = {
    "overwrite": Writer.overwrite,
    "replace": Writer.replace,
    "rotate": Writer.rotate,
    "into-place": Writer.into_place,
}


def content(chance: random.Random) -> bytes:
    """A safetensors file of random data that names the data's digest."""
    data = chance.randbytes(chance.randrange(1, LARGEST))
    tensor = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = {"__metadata__": {"digest": hashlib.sha256(data).hexdigest()}, "data": tensor}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def is_whole(file: bytes) -> bool:
    """Whether these are the bytes of a file that `content` made."""
    length = int.from_bytes(file[:8], "little")
    try:
        header = json.loads(file[8 : 8 + length])
        return bool(header["__metadata__"]["digest"] == hashlib.sha256(file[8 + length :]).hexdigest())
    except (ValueError, KeyError, TypeError):
        return False


def _write(path: Path, chance: random.Random) -> str:
    """Write a new file in pieces; returns its digest."""
    file = content(chance)
    view = memoryview(file)
    with open(path, "wb", buffering=0) as out:
        while view:
            view = view[out.write(view[: 1 << 16]) :]
    return blake3(file).hexdigest()


def _say(*words: object) -> None:
    # One write(2): a kill must not cut a line off.
    os.write(1, " ".join(map(str, words)).encode() + b"\n")


def main() -> int:
    habit, directory, name, seed, *count = sys.argv[1:]
    saves = HABITS[habit](Writer(Path(directory), name, int(seed)))
    left = int(count[0]) if count else -1
    try:
        while left:
            next(saves)
            left -= 1
    except OSError as error:  # the daemon was killed
        _say("error", error.errno)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
