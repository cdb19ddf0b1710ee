"""All ranks of dcp_rank.py on one machine, in one output directory: dcp_ranks N LOG STEPS."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.ordeals.training_node import RANK_PROGRAM, rank_environment


def main() -> None:
    ranks, log, steps = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    with tempfile.TemporaryDirectory() as place:
        started = [
            subprocess.Popen(
                [sys.executable, str(RANK_PROGRAM), str(log.with_name(f"{rank}-{log.name}")), steps],
                env=os.environ | rank_environment(rank, ranks, f"file://{place}/meeting", os.environ["ATTEMPT"], "lo"),
            )
            for rank in range(ranks)
        ]
        codes = [one.wait() for one in started]
    sys.exit(max(codes, key=abs))


if __name__ == "__main__":
    main()
