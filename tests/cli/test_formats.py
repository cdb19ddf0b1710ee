from __future__ import annotations

import pytest

from fuse_ckpt.cli import formats

DAY = 1_749_114_463 * 10**9  # 2025-06-05 09:07:43 UTC


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (DAY + 816_000_000, "2025-06-05 09:07:43.816 +0000 UTC"),
        (DAY + 810_000_000, "2025-06-05 09:07:43.81 +0000 UTC"),
        (DAY, "2025-06-05 09:07:43 +0000 UTC"),
        (DAY + 999_999, "2025-06-05 09:07:43 +0000 UTC"),
        (DAY + 1_999_999, "2025-06-05 09:07:43.001 +0000 UTC"),
        (0, "1970-01-01 00:00:00 +0000 UTC"),
        (-1, "1969-12-31 23:59:59.999 +0000 UTC"),
    ],
)
def test_a_timestamp_has_no_zeros_at_the_end_of_its_fraction(ns: int, text: str) -> None:
    assert formats.timestamp(ns) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (725, "725 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (10 << 20, "10 MB"),
        (int(2.1 * 2**30), "2.1 GB"),
        (1024**2 - 1, "1 MB"),
        (1024**3 - 1, "1 GB"),
        (int(9.97 * 1024), "10 KB"),
        (5 << 60, "5 EB"),
        (5 << 70, "5120 EB"),
    ],
)
def test_a_size_is_1024_based_and_short(count: int, text: str) -> None:
    assert formats.size(count) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("step=3 ü 模型", "step=3 ü 模型"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\x9b2J", r"\x9b2J"),
        ("ok\u202egnp.exe", r"ok\u202egnp.exe"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_a_terminal_could_act_on_is_written_as_an_escape(text: str, shown: str) -> None:
    assert formats.visible(text) == shown
    assert formats.visible(text).isprintable()


def test_a_loss_that_is_no_number_is_an_empty_cell() -> None:
    assert [formats.loss(x) for x in (0.123456789, 2.0, 1e-7, float("nan"), float("inf"), None)] == [
        "0.123457",
        "2",
        "1e-07",
        "",
        "",
        "",
    ]
