"""Kill training at random moments while it saves, and look at what is listed then.

Never may a checkpoint be available that is torn (a file that cannot be loaded, files of two saves, one too few), or
what was saved to its end be in none; and `-C JOB:latest` must load, each time. Exit code 1 where one of these was seen.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from scripts.killing.forms import FORMS
from scripts.killing.rounds import Killing, Tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kib", type=int, default=512, help="the size of a saved file (%(default)s)")
    parser.add_argument("--form", action="append", choices=FORMS, help="only these; all by turns without")
    parser.add_argument("--directory", type=Path, help="where the store is made, and removed at the end")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.directory) as top:
        killing = Killing(Path(top), random.Random(options.seed), options.kib)
        try:
            for number, form in zip(range(1, options.kills + 1), cycle(options.form or FORMS)):
                killing.round(form)
                if sys.stdout.isatty():
                    print(f"\r{number} kills, {len(killing.tally.violations)} violations", end="", flush=True)
        finally:
            killing.close()
    report(killing.tally, options.seed, time.monotonic() - began)
    sys.exit(bool(killing.tally.violations))


def report(tally: Tally, seed: int, seconds: float) -> None:
    print(f"\nseed {seed}, {seconds:.0f} s")
    print(f"{tally.kills:6} kills")
    print(f"{tally.begun:6} saves begun, {tally.saved} of them ended")
    print(f"{tally.available:6} available, {tally.failed} failed ({tally.mistrusted} of them whole)")
    print(f"{tally.loads:6} available ones loaded in another process, {tally.resumed} resumed from as latest")
    print(f"{len(tally.violations):6} violations")
    for violation in tally.violations:
        print(f"       {violation}")


if __name__ == "__main__":
    main()
