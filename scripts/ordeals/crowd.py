"""Many writers in one process: `python -m scripts.ordeals.crowd DIRECTORY NAME WRITERS SEED SECONDS PAUSE`.

Each writer is a thread with a habit of `scripts.ordeals.writer`, and says what it does in the same words. It waits
up to twice PAUSE seconds between two saves.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import traceback
from pathlib import Path

from scripts.ordeals.writer import HABITS, Writer


def write(directory: Path, name: str, number: int, seed: int, seconds: float, pause: float) -> None:
    """One writer's life."""
    chance = random.Random(seed)
    habit = list(HABITS)[number % len(HABITS)]
    saves = HABITS[habit](Writer(directory, f"{habit}-{name}-{number}", seed))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        next(saves)
        time.sleep(chance.uniform(0, 2 * pause))


def main() -> int:
    directory, name, writers, seed, seconds, pause = sys.argv[1:]
    failures: list[BaseException] = []

    def live(number: int) -> None:
        try:
            write(Path(directory), name, number, int(seed) + number, float(seconds), float(pause))
        except BaseException as error:
            traceback.print_exc()
            failures.append(error)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(int(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
