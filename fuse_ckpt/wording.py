"""How values are written for people, by every room that shows something. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_UNITS = ("KB", "MB", "GB", "TB", "PB", "EB")


def visible(text: str) -> str:
    """`text` with control, invisible and undecodable characters written as escapes: ESC is `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(ord(char)) for char in text)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as a surrogate escape
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def timestamp(ns: int) -> str:
    """Nanoseconds since the epoch as `2025-06-05 09:07:43.816 +0000 UTC`: milliseconds, zeros at the end left out."""
    seconds, rest = divmod(ns // 1_000_000, 1000)
    moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    return f"{moment}{fraction} +0000 UTC"


def size(count: int) -> str:
    """Bytes as `725 bytes`, `10 MB`, `2.1 GB`: 1024-based, one decimal below 10."""
    if count < 1024:
        return "1 byte" if count == 1 else f"{count} bytes"
    # By what is written, not by the value: 1023.6 KB would be written "1024 KB".
    last = len(_UNITS)
    power = next(p for p in range(1, last + 1) if p == last or float(_digits(count / 1024**p)) < 1024)
    return f"{_digits(count / 1024**power)} {_UNITS[power - 1]}"


def _digits(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value < 9.95 else f"{value:.0f}"


def loss(value: float | None) -> str:
    """A loss in six significant digits."""
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"
