"""What a pickle would make, as symbols: each says what it stands for, none does anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from msgspec import Struct


class Opaque(Enum):
    """A value of which nothing is known but that it is one."""

    UNKNOWN = "unknown"
    SKIPPED = "too long to be read"


class Global(Struct, frozen=True):
    """A class or function that the pickle names, as Python 3 would find it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Dict:
    """A dictionary: its pairs in order. Keys may be anything, also what a Python dictionary refuses."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        self._pairs: list[tuple[object, object]] | None = None  # most that a hostile pickle makes stay empty

    @property
    def pairs(self) -> Sequence[tuple[object, object]]:
        return self._pairs or ()

    def put(self, pairs: Iterable[tuple[object, object]]) -> None:
        if self._pairs is None:
            self._pairs = []
        self._pairs.extend(pairs)

    def named(self) -> dict[str, object]:
        """The items whose key is a string."""
        return {key: value for key, value in self.pairs if type(key) is str}


class Made(Dict):
    """What a call of `maker` with `arguments` would return, and what the pickle then did to it."""

    __slots__ = ("arguments", "maker", "state")

    def __init__(self, maker: object, arguments: object = (), state: object = None) -> None:
        super().__init__()
        self.maker = maker
        self.arguments = arguments
        self.state = state

    def is_a(self, name: str) -> bool:
        """Whether it is made by a class or function of that name, whatever its module."""
        return isinstance(self.maker, Global) and self.maker.name == name

    def attributes(self) -> dict[str, object]:
        """The state that BUILD gave it, as attributes."""
        found: dict[str, object] = {}
        for part in self.state if isinstance(self.state, tuple) else (self.state,):
            if isinstance(part, Dict):
                found |= part.named()
        return found


class Storage(Struct, frozen=True):
    """Bytes that lie beside the pickle, under `key`."""

    key: str
    dtype: str  # "" where the storage does not say
    count: int  # of elements
    shift: int = 0  # elements, of a view into the storage


class SavedTensor(Struct, frozen=True):
    """A tensor as torch saves it: a view of a storage. Offset and strides are in elements."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    storage: Storage | None = None  # None: its bytes are nowhere (a meta tensor)
    more: str = ""  # what makes two tensors of equal bytes differ: the parameters of a quantization
