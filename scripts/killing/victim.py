"""Training that does nothing but save: victim.py FORM KIB. Says where it stands, a line each:

pid N   loaded STEP   saving STEP   saved STEP SECONDS
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from scripts.killing.content import check, state
from scripts.killing.forms import FORMS

TENSORS = 8  # so that a file is written by many calls


def main() -> None:
    form, kib = FORMS[sys.argv[1]], int(sys.argv[2])
    output = Path(os.environ["FLEXAI_OUTPUT_CHECKPOINT_DIR"])
    print(f"pid {os.getpid()}", flush=True)
    step = 0
    given = os.environ.get("FLEXAI_INPUT_CHECKPOINT_DIR")
    if given:
        step = check({path.name: path for path in Path(given).iterdir()})
        print(f"loaded {step}", flush=True)
    while True:
        step += 1
        print(f"saving {step}", flush=True)
        began = time.monotonic()
        for name in form.files:
            path = output / name.format(step)
            path.parent.mkdir(exist_ok=True)
            _write(path, form.aside, step, kib)
        print(f"saved {step} {time.monotonic() - began:.6f}", flush=True)
        time.sleep(form.pause)


def _write(path: Path, aside: bool, step: int, kib: int) -> None:
    place = path.with_name(f"{path.stem}.tmp{path.suffix}") if aside else path
    _save(place, step, kib)
    if aside:
        os.replace(place, path)


def _save(path: Path, step: int, kib: int) -> None:
    numbers = state(step, kib * 1024 // TENSORS, TENSORS)
    if path.suffix == ".json":
        path.write_text(json.dumps({"global_step": step, "log_history": [{"step": step}]}))
    elif path.suffix == ".safetensors":
        save_file(numbers, path, {"step": str(step)})
    elif "optimizer" in path.name or "ckpt" in path.name or "last" in path.name:
        torch.save({"step": step, "model": numbers, "optimizer": {"state": {}, "param_groups": []}}, path)
    else:
        torch.save({"step": step, "model": numbers}, path)


if __name__ == "__main__":
    main()
