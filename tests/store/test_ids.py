from __future__ import annotations

from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from fuse_ckpt.store.ids import STEP_MAX, after

EARLY = "018f0000-0000-7000-8000-000000000001"
LATE = "019f0000-0000-7000-8000-000000000001"


def test_the_first_id_is_the_clocks() -> None:
    assert after(None, EARLY, 1) == EARLY


def test_a_later_clock_is_believed() -> None:
    assert after(EARLY, LATE, 1) == LATE


def test_a_clock_that_went_back_continues_from_the_newest() -> None:
    assert after(LATE, EARLY, 1) == "019f0000-0000-7000-8000-000000000002"


def test_the_same_id_is_not_given_twice() -> None:
    assert after(LATE, LATE, 1) > LATE


@given(bits=st.integers(0, (1 << 122) - STEP_MAX - 1), step=st.integers(1, STEP_MAX))
def test_every_successor_is_a_later_uuid7(bits: int, step: int) -> None:
    rand_b = bits & (1 << 62) - 1
    newest = UUID(int=(bits >> 74) << 80 | 7 << 76 | (bits >> 62 & 0xFFF) << 64 | 2 << 62 | rand_b)
    successor = UUID(after(str(newest), EARLY if str(newest) >= EARLY else str(newest), step))
    assert str(successor) > str(newest)
    assert (successor.version, successor.variant) == (7, RFC_4122)
