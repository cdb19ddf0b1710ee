"""Run a program as several ranks of one training: ranks.py N PROGRAM ARGUMENTS…

What torchrun does, on this machine alone and without a server that listens: ranks meet in a file (task.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile


def main() -> None:
    ranks, command = int(sys.argv[1]), [sys.executable, *sys.argv[2:]]
    with tempfile.TemporaryDirectory() as place:
        shared = os.environ | {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "MEETING_PLACE": f"{place}/meeting",
        }
        started = [
            subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(ranks)
        ]
        codes = [one.wait() for one in started]
    sys.exit(max(codes, key=abs))


if __name__ == "__main__":
    main()
