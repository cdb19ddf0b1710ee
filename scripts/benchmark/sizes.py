"""How much the cases move; `--scale` makes all of it smaller."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
GIB = 1 << 30
TENSORS = 256
SHARDS = 8
SHARD_TENSORS = 32
SMALL_SIZE = 4096  # bytes of a small file


@dataclass(frozen=True)
class Sizes:
    """Bytes and counts; `scale` 1 is what the goals speak of."""

    scale: float = 1.0

    @property
    def state(self) -> int:
        """Bytes of the state dict."""
        return self._bytes(GIB)

    @property
    def resaved(self) -> int:
        """Bytes of the state dict that is saved over a committed one: each save of it stays in the store."""
        return self._bytes(GIB // 4)

    @property
    def shard(self) -> int:
        """Bytes of one of the state dicts that several processes save at once."""
        return self._bytes(128 * MIB)

    @property
    def file(self) -> int:
        """Bytes of one of many files."""
        return self._bytes(2 * MIB)

    @property
    def files(self) -> int:
        return self._count(300)

    @property
    def small_files(self) -> int:
        return self._count(1000)

    @property
    def stats(self) -> int:
        return self._count(100_000)

    @property
    def listed(self) -> int:
        return self._count(10_000)

    def _bytes(self, full: int) -> int:
        return max(4096, int(full * self.scale))

    def _count(self, full: int) -> int:
        return max(10, int(full * self.scale))
