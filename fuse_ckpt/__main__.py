"""`python -m fuse_ckpt` is the program `fuse-ckpt`: background daemons are started this way, whatever the PATH says."""

from __future__ import annotations

import sys

from fuse_ckpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
