"""The image that scripts/Dockerfile describes, as far as it can be told without building it."""

from __future__ import annotations

import json
import re

import pytest

from tests.mount.containers import PLACES
from tests.mount.runs import SCRIPTS, Desk

pytestmark = [pytest.mark.mount, pytest.mark.once]


def test_the_dockerfile_says_what_the_program_understands(desk: Desk) -> None:
    text = (SCRIPTS / "Dockerfile").read_text().replace("\\\n", " ")
    stage = text[text.rindex("\nFROM ") :]
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", stage, re.MULTILINE)
    program, *words = json.loads(entry)
    assert program == "fuse-ckpt"
    assert desk.cli(*words, "--help").returncode == 0
    assert desk.cli(*words, "job").returncode == 2, "COMMAND is missing"
    said = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", stage, re.MULTILINE) for pair in line.split())
    assert {key: said[key] for key in PLACES} == PLACES
    volumes = re.findall(r"^VOLUME (.*)$", stage, re.MULTILINE)
    assert volumes == [said["FUSE_CKPT_STORE"]]
    made = " ".join(re.findall(r"mkdir -p (.*)", stage)).split()
    assert {*PLACES.values(), *volumes} <= set(made), "mounted and bound where the variables say"
