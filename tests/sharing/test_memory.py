"""What a transfer needs in memory, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
from blake3 import blake3

from fuse_ckpt.sharing import SharedStore
from fuse_ckpt.transfer import Place
from tests.sharing.conftest import established
from tests.transfer.seaweed import BUCKET, Seaweed

SIZE = 300 << 20
PROGRAM = """
import sys
from pathlib import Path
import msgspec
from fuse_ckpt.model import Connection, Kind
from fuse_ckpt.sharing import PartFile, SharedStore, group_of
from fuse_ckpt.transfer import Place, Remote
from tests.transfer.seaweed import NOWHERE
connection = msgspec.json.decode(sys.argv[1], type=Connection)
shared = SharedStore(Remote(connection, sys.argv[2], NOWHERE), Place(sys.argv[2], sys.argv[3]))
path, size, digest = Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
key = shared.put_data("job", group_of("job", "0", "a", 1), 0, path, size, digest)
shared.fetch_file("job", PartFile("x", Kind.FILE, 0o644, 1, size, digest, key=key), path.with_name("back"))
# Not ru_maxrss: that one counts the process that started us too.
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_size(seaweed: Seaweed, place: Place, tmp_path: Path) -> None:
    """300 MiB there and back in at most 256 MiB."""
    established(SharedStore(seaweed.remote(), place))
    big = tmp_path / "big"
    big.touch()
    os.truncate(big, SIZE)
    digest = blake3().update_mmap(big).hexdigest()
    connection = msgspec.json.encode(seaweed.connection()).decode()
    arguments = [connection, BUCKET, place.prefix, str(big), str(SIZE), digest]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 256
    assert (tmp_path / "back").stat().st_size == SIZE
