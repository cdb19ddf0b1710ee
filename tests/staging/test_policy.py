from __future__ import annotations

import pytest
from msgspec.structs import replace

from fuse_ckpt.model import Shape, Unit
from fuse_ckpt.staging.policy import MANY_APPENDS, Draft, QuietPeriods, due, is_marker, may_be_lost, may_lack_members

SETTINGS = QuietPeriods()
DIRECTORY = Unit("checkpoint-5", Shape.DIRECTORY)
FLAT = Unit("ckpt.pt", Shape.FLAT)
RANKS = Unit("ep1-rank0.pt", Shape.FLAT)
ROOT = Unit("", Shape.ROOT)

DRAFT = Draft(unit=DIRECTORY, first_closed=90.0, last_change=100.0, newest="optimizer.pt")
MARKED = replace(DRAFT, newest="trainer_state.json")


@pytest.mark.parametrize(
    ("draft", "quiet"),
    [
        (replace(DRAFT, unit=FLAT, newest="ckpt.pt"), 0.2),
        (replace(DRAFT, unit=FLAT, newest="ckpt.pt", many=True), 0.2),
        (MARKED, 1),
        (replace(MARKED, many=True), 5),
        (replace(MARKED, unit=ROOT), 1),
        (DRAFT, 5),
        (replace(DRAFT, many=True), 30),
        (replace(DRAFT, many=True, hinted=True), 5),
        (replace(MARKED, hinted=True), 1),
        (replace(DRAFT, renamed_into_place=True, many=True), 0),
        (replace(DRAFT, live_writers=False, many=True), 0),
        (replace(DRAFT, live_writers=True), 5),
        (replace(DRAFT, finishing=True), 0),
        (replace(DRAFT, unmarked=True), 1),
        (replace(DRAFT, unmarked=True, many=True), 5),
        (replace(DRAFT, unit=FLAT, newest="ckpt.pt", appends=MANY_APPENDS - 1), 0.2),
        (replace(DRAFT, unit=FLAT, newest="ckpt.pt", appends=MANY_APPENDS), 30),
        (replace(DRAFT, unit=FLAT, newest="ckpt.pt", appends=MANY_APPENDS, live_writers=False), 0),
    ],
)
def test_a_draft_is_due_after_the_quiet_that_its_signs_ask_for(draft: Draft, quiet: float) -> None:
    assert due(draft, SETTINGS) == pytest.approx(100 + quiet)


@pytest.mark.parametrize(
    "draft",
    [
        replace(DRAFT, open_writers=1),
        replace(DRAFT, open_writers=1, finishing=True),
        replace(DRAFT, open_writers=1, live_writers=False),
        replace(DRAFT, open_writers=1, renamed_into_place=True),
        replace(DRAFT, first_closed=None),
    ],
)
def test_a_draft_that_is_still_written_is_not_due(draft: Draft) -> None:
    assert due(draft, SETTINGS) is None


def test_a_marker_that_a_newer_member_followed_does_not_count() -> None:
    marked = due(MARKED, SETTINGS)
    followed = due(replace(MARKED, newest="rng_state_1.pth"), SETTINGS)
    assert marked is not None
    assert followed is not None
    assert followed > marked


def test_the_ranks_of_one_save_are_awaited_although_each_is_a_flat_file() -> None:
    assert due(replace(DRAFT, unit=RANKS, newest="ep1-rank0.pt", many=True), SETTINGS) == pytest.approx(130)


def test_a_hint_never_lengthens_the_wait() -> None:
    brief = QuietPeriods(quiet=2.0)
    assert due(replace(DRAFT, hinted=True), brief) == pytest.approx(102)


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        (DIRECTORY, "trainer_state.json"),
        (DIRECTORY, ".metadata"),
        (DIRECTORY, "metadata.json"),
        (DIRECTORY, "model_index.json"),
        (DIRECTORY, "model.safetensors.index.json"),
        (Unit("epoch=1.ckpt", Shape.DIRECTORY), "meta.pt"),
        (ROOT, "trainer_state.json"),
        (Unit("net.safetensors.index.json", Shape.FLAT), "net.safetensors.index.json"),
        (Unit(".metadata", Shape.FLAT), ".metadata"),
    ],
)
def test_a_familys_last_file_is_a_marker(unit: Unit, path: str) -> None:
    assert is_marker(unit, path)


@pytest.mark.parametrize(
    ("unit", "path"),
    [
        (DIRECTORY, "pytorch_model_fsdp_0/.metadata"),
        (DIRECTORY, "unet/diffusion.safetensors.index.json"),
        (DIRECTORY, "config.json"),
        (Unit("best", Shape.DIRECTORY), "meta.pt"),
        (ROOT, "model.safetensors.index.json"),
        (FLAT, "ckpt.pt"),
        (RANKS, "ep1-rank0.pt"),
    ],
)
def test_other_files_are_no_markers(unit: Unit, path: str) -> None:
    assert not is_marker(unit, path)


def test_removing_a_member_of_a_closed_draft_could_lose_it() -> None:
    assert may_be_lost(DRAFT, 100.0, SETTINGS, rewritten=False)


@pytest.mark.parametrize("draft", [replace(DRAFT, open_writers=1), replace(DRAFT, first_closed=None)])
def test_a_draft_that_is_still_written_has_nothing_to_lose(draft: Draft) -> None:
    assert not may_be_lost(draft, 100.0, SETTINGS, rewritten=False)


@pytest.mark.parametrize(
    ("draft", "now", "lost"),
    [
        (DRAFT, 100.1, False),
        (DRAFT, 101.0, True),
        (MARKED, 100.1, True),
        (replace(DRAFT, unit=FLAT, newest="ckpt.pt"), 100.0, True),
        (replace(DRAFT, unit=RANKS, newest="ep1-rank0.pt"), 100.0, False),
    ],
)
def test_rewriting_a_member_loses_a_save_only_once_it_looks_finished(draft: Draft, now: float, lost: bool) -> None:
    assert may_be_lost(draft, now, SETTINGS, rewritten=True) is lost


@pytest.mark.parametrize(
    ("draft", "may"),
    [
        (DRAFT, True),
        (replace(DRAFT, unit=RANKS), True),
        (MARKED, False),
        (replace(DRAFT, unmarked=True), False),
        (replace(DRAFT, renamed_into_place=True), False),
        (replace(DRAFT, unit=FLAT, newest="ckpt.pt"), False),
    ],
)
def test_a_writer_that_dies_between_two_files_leaves_a_set_that_may_lack_some(draft: Draft, may: bool) -> None:
    assert may_lack_members(draft) is may
