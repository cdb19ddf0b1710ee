"""scripts/kill_training, in short: training that is killed while it saves leaves nothing torn that is available."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from scripts.killing.forms import FORMS
from scripts.killing.rounds import Killing
from tests.conftest import MountJob

pytestmark = [pytest.mark.mount, pytest.mark.once]

ROUNDS = 2  # of each form: a kill, and a kill of what went on from the first


@pytest.mark.timeout(600)
def test_a_kill_while_it_saves_leaves_nothing_torn_and_latest_always_loads(tmp_path: Path, mount_job: MountJob) -> None:
    """(`mount_job` for its word on whether anything can be mounted here.)"""
    killing = Killing(tmp_path, random.Random(1))
    try:
        for form in list(FORMS) * ROUNDS:
            killing.round(form)
    finally:
        killing.close()
    tally = killing.tally
    assert tally.violations == []
    assert tally.kills == len(FORMS) * ROUNDS
    assert tally.available == tally.loads >= len(FORMS)
    assert tally.begun > tally.saved, "no save was ever cut off"
