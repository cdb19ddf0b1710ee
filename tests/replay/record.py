"""Record the traces of tests/data/traces anew, on a real mount: python -m tests.replay.record [NAME…]"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mount.harness import Mount
from tests.mount.runs import OUTPUT, SCRIPTS

TRACES = Path(__file__).parents[1] / "data" / "traces"
PROGRAMS = SCRIPTS / "training" / "frameworks"
RECORDER = Path(__file__).with_name("recorder.py")

# name → ranks, program, arguments
SCENARIOS: dict[str, tuple[int, list[str]]] = {
    "torch-flat": (1, ["with_torch.py", "--form", "flat"]),
    "torch-fixed": (1, ["with_torch.py", "--form", "fixed"]),
    "torch-replaced": (1, ["with_torch.py", "--form", "replaced"]),
    "torch-directory": (1, ["with_torch.py", "--form", "directory"]),
    "safetensors": (1, ["with_torch.py", "--form", "safetensors"]),
    "trainer": (1, ["with_trainer.py", "--save-every", "2", "--total-limit", "1", "--best", "--export"]),
    "trainer-2": (2, ["with_trainer.py"]),
    "peft": (1, ["with_trainer.py", "--adapter"]),
    "accelerate": (1, ["with_accelerate.py", "--total-limit", "1", "--save-every", "2"]),
    "accelerate-2": (2, ["with_accelerate.py"]),
    "lightning-top": (1, ["with_lightning.py", "--top", "1"]),
    "lightning-copy": (1, ["with_lightning.py", "--last", "copy"]),
    "lightning-link": (1, ["with_lightning.py", "--last", "link"]),
    "lightning-copied": (1, ["with_lightning.py", "--last", "copied"]),
    "dcp-2": (2, ["with_dcp.py"]),
    "dcp-async-2": (2, ["with_dcp.py", "--no-wait"]),
    "fsdp2-2": (2, ["with_dcp.py", "--sharded"]),
    "deepspeed-2": (2, ["with_deepspeed.py"]),
    "diffusers": (1, ["with_diffusers.py"]),
    "sentence-transformers": (1, ["with_sentence_transformers.py"]),
}


def record(name: str, top: Path) -> None:
    """Run a scenario on a mount whose daemon writes the trace."""
    ranks, program = SCENARIOS[name]
    place = top / "mnt"
    place.mkdir()
    mount = Mount(top / "store", place, "job", [], top / "daemon.log")
    mount.mount(program=(sys.executable, str(RECORDER), str(TRACES / f"{name}.jsonl")))
    launcher = [str(PROGRAMS / "ranks.py"), str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, str(PROGRAMS / program[0]), *program[1:]]
    environment = os.environ | {OUTPUT: str(place), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    finally:
        problems = mount.close()
    assert not problems, problems


def main() -> None:
    TRACES.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or SCENARIOS:
        with tempfile.TemporaryDirectory() as top:
            record(name, Path(top))
        print(name, (TRACES / f"{name}.jsonl").stat().st_size, "bytes", flush=True)


if __name__ == "__main__":
    main()
