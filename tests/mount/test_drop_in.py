"""The script of somebody who knows FlexAI's command line, run as it is, with `alias flexai=fuse-ckpt`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mount.runs import Desk

pytestmark = [pytest.mark.mount, pytest.mark.once]

SCRIPT = r"""
set -euo pipefail
shopt -s expand_aliases
alias flexai=fuse-ckpt
field() { python3 -c "import json, sys; found = json.load(sys.stdin); print($1)"; }

flexai training run drop-in-1 --accels 1 --nodes 1 -- python3 train.py
newest=$(flexai training checkpoints drop-in-1 --json | field 'found[-1]["id"]')
flexai checkpoint inspect "$newest" --json >inspected.json 2>inspected.err
[ ! -s inspected.err ]
[ "$(field 'found["metadata"]["id"]' <inspected.json)" = "$newest" ]
[ "$(field 'found["status"]["metadata"]["step"]' <inspected.json)" = 6 ]

mkdir mine && cp model.safetensors config.json mine && cd mine
flexai checkpoint push my-model --file ./
cd ..
for _ in $(seq 50); do
    status=$(flexai checkpoint inspect my-model --json | field 'found["status"]["status"]')
    [ "$status" != available ] || break
    sleep 0.2
done
[ "$status" = available ]
[ "$(flexai checkpoint inspect my-model --json | field 'found["spec"]["fromLocalFiles"][0]')" = "$PWD/mine" ]
[ "$(flexai checkpoint list --json | field '[one["name"] for one in found].count("my-model")')" = 1 ]

flexai checkpoint fetch my-model --destination fetched
cmp fetched/model.safetensors mine/model.safetensors
cmp fetched/config.json mine/config.json
flexai training run drop-in-2 --checkpoint my-model -- \
    bash -c 'cmp "$FLEXAI_INPUT_CHECKPOINT_DIR/config.json" mine/config.json'

flexai checkpoint delete my-model --yes
code=0
flexai checkpoint inspect my-model >out 2>err || code=$?
[ "$code" = 3 ]
[ ! -s out ]
grep -q '^Unknown Checkpoint: my-model' err
flexai checkpoint delete "$newest" --yes
flexai checkpoint inspect "$newest" 2>err || code=$?
[ "$code" = 3 ]
grep -q "^Unknown Checkpoint: $newest" err
echo all is well
"""
TRAIN = r"""
import json, os
from pathlib import Path
out = Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
for step in (3, 6):
    place = out / f"checkpoint-{step}"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (place / "config.json").write_text('{"architectures": ["Tiny"]}')
    (place / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1.0, "step": step}]}))
"""


def test_a_flexai_users_script_runs_as_it_is(desk: Desk) -> None:
    here = desk.top / "here"
    (here / "bin").mkdir(parents=True)
    program = here / "bin/fuse-ckpt"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m fuse_ckpt "$@"\n')
    program.chmod(0o755)
    (here / "train.py").write_text(TRAIN)
    (here / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (here / "config.json").write_text('{"architectures": ["Mine"]}')
    environment = desk.environment(FUSE_CKPT_STORE=str(desk.store))
    environment["PATH"] = f"{here / 'bin'}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", SCRIPT], cwd=here, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all is well\n"), done.stdout + done.stderr
