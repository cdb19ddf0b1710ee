"""Loads checkpoints in a process of its own: a JSON object {name: path} a line in, {"step"} or {"error"} a line out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scripts.killing.content import check


def main() -> None:
    for line in sys.stdin:
        try:
            answer: dict[str, object] = {"step": check({name: Path(path) for name, path in json.loads(line).items()})}
        except Exception as exc:  # whatever it is, the checkpoint cannot be loaded
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
