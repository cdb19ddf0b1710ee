"""The tensors of a distributed checkpoint, by the `.metadata` that torch.distributed.checkpoint writes last.

It is a pickle of records: `state_dict_metadata` tells each tensor's type, shape and chunks, `storage_data` where each
chunk lies: a file, a place and a length, at which a whole file of torch.save begins.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

from msgspec import Struct

from fuse_ckpt.contents.machine import run
from fuse_ckpt.contents.opcodes import Budget
from fuse_ckpt.contents.reading import Unreadable, Window
from fuse_ckpt.contents.rebuilding import dtype_of, lengths
from fuse_ckpt.contents.report import Report
from fuse_ckpt.contents.symbols import Dict, Made
from fuse_ckpt.contents.tensors import Piece, Source, Tensor, strides_of

CHUNKS_MAX = 1_000_000


class Stored(Struct, frozen=True):
    """Where a chunk lies: a path of the checkpoint, and the bytes there."""

    path: str
    at: int
    length: int
    plain: bool  # as torch.save wrote it, not transformed since


_Key = tuple[str, tuple[int, ...]]  # a tensor's name, and where in it a chunk begins


class Records:
    """What a `.metadata` says. Raises Unreadable, TooMuch, or one of BROKEN."""

    def __init__(self, window: Window, path: str) -> None:
        self._path = path
        top = run(window.stream(), Report(), Budget())
        if not isinstance(top, Made) or not top.is_a("Metadata"):
            raise Unreadable("is no metadata of a distributed checkpoint")
        said = top.attributes()
        self._tensors = _dict(said.get("state_dict_metadata"))
        self.stored = dict(self._places(_dict(said.get("storage_data"))))

    def tensors(self, digests: Mapping[str, str]) -> Iterator[Tensor]:
        """Its tensors. `digests`: of the checkpoint's files, by path."""
        for name, said in self._tensors.named().items():
            if isinstance(said, Made) and said.is_a("TensorStorageMetadata"):
                yield self._tensor(name, said.attributes(), digests)

    def _tensor(self, name: str, said: dict[str, object], digests: Mapping[str, str]) -> Tensor:
        properties = said.get("properties")
        state = properties.state if isinstance(properties, Made) else ()
        dtype = dtype_of(state[0]) if isinstance(state, tuple) and state else ""
        shape = lengths(said.get("size"))
        chunks = said.get("chunks")
        pieces: list[Piece] = []
        files: dict[str, None] = {}
        fault = "" if dtype else "is of a type that is not read here"
        for chunk in chunks if isinstance(chunks, list) else ():
            attributes = chunk.attributes() if isinstance(chunk, Made) else {}
            origin, sizes = lengths(attributes.get("offsets")), lengths(attributes.get("sizes"))
            stored = self.stored.get((name, origin))
            if stored is None or stored.path not in digests or not stored.plain:
                fault = fault or "has a chunk that is not in the checkpoint, or transformed"
                continue
            files[stored.path] = None
            source = Source(stored.path, digests[stored.path])
            pieces.append(Piece(source, stored.at, sizes, strides_of(sizes), origin, saved=stored.length))
        return Tensor(name, self._path, tuple(files), dtype, shape, () if fault else tuple(pieces), fault=fault)

    def _places(self, storage_data: Dict) -> Iterator[tuple[_Key, Stored]]:
        if len(storage_data.pairs) > CHUNKS_MAX:
            raise Unreadable(f"has more than {CHUNKS_MAX:,} chunks")
        for index, information in storage_data.pairs:
            if not isinstance(index, Made) or not isinstance(information, Made):
                continue
            said, place = index.attributes(), information.attributes()
            name, path, at, length = (said.get("fqn"), *map(place.get, ("relative_path", "offset", "length")))
            if isinstance(name, str) and isinstance(path, str) and isinstance(at, int) and isinstance(length, int):
                origin = said.get("offset")
                key = (name, () if origin is None else lengths(origin))
                yield key, Stored(self._resolved(path), at, length, not place.get("transform_descriptors"))

    def _resolved(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(posixpath.dirname(self._path), path))


def _dict(value: object) -> Dict:
    return value if isinstance(value, Dict) else Dict()
