"""Each format's check: what its writer makes is whole, no cut of it is, and no file takes much memory or time."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from fuse_ckpt.staging.validate import fault_of
from tests.staging.test_validate import Folder, torch_zip

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    os.close(made.fd)


def legacy(value: Any) -> bytes:
    made = io.BytesIO()
    torch.save(value, made, _use_new_zipfile_serialization=False)
    return made.getvalue()


def numpy_file(array: Any, *, npz: bool = False) -> bytes:
    made = io.BytesIO()
    np.savez(made, a=array) if npz else np.save(made, array)
    return made.getvalue()


def hdf5(version: int, body: int = 100) -> bytes:
    """The superblock of an HDF5 file and `body` bytes behind it (HDF5 File Format Specification, II.A)."""
    if version < 2:
        more = b"\x01\0\0\0" if version == 1 else b""
        start = b"\x89HDF\r\n\x1a\n" + bytes([version, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHL", 4, 16, 0) + more
        rest = bytes(40)  # the root group's entry
        head = len(start) + 32 + len(rest)
        return start + struct.pack("<QQQQ", 0, 2**64 - 1, head + body, 2**64 - 1) + rest + bytes(body)
    start = b"\x89HDF\r\n\x1a\n" + bytes([version, 8, 8, 0])
    head = len(start) + 36
    return start + struct.pack("<QQQQL", 0, 2**64 - 1, head + body, 48, 0) + bytes(body)


VALUE = {"model": {"w": torch.arange(100.0), "h": torch.ones(7, dtype=torch.bfloat16)}, "step": 3}
SHARED = {"a": VALUE["model"]["w"], "b": VALUE["model"]["w"][10:20], "ids": torch.arange(5)}  # type: ignore[index]
WHOLE = [
    ("a.pt", legacy(VALUE)),
    ("shared.ckpt", legacy(SHARED)),
    ("nothing.pth", legacy({"step": 3})),
    ("halves.bin", legacy([torch.ones(9, dtype=torch.float16), torch.zeros(3, dtype=torch.complex64)])),
    ("zip.pt", torch_zip()),
    ("states.pkl", pickle.dumps({"rng": list(range(300)), "text": "x" * 70_000}, protocol=4)),
    ("old.pkl", pickle.dumps({"rng": [1.5, 2**70, None, b"bytes"]}, protocol=2)),
    ("one.npy", numpy_file(np.ones((3, 5), dtype="<f4"))),
    ("text.npy", numpy_file(np.array(["ab", "c"]))),
    ("scalar.npy", numpy_file(np.float64(3))),
    ("both.npz", numpy_file(np.arange(50), npz=True)),
    ("v0.weights.h5", hdf5(0)),
    ("v1.h5", hdf5(1)),
    ("v2.hdf5", hdf5(2)),
    ("v3.h5", hdf5(3)),
]


@pytest.mark.parametrize(("name", "data"), WHOLE, ids=[name for name, _ in WHOLE])
def test_what_is_whole_is_whole_and_no_prefix_of_it_is(folder: Folder, name: str, data: bytes) -> None:
    folder.write(name, data)
    assert folder.fault(name) is None
    step = max(1, len(data) // 100)
    for length in (*range(0, len(data), step), len(data) - 1):
        os.truncate(folder.path / name, 0)
        folder.write(name, data[:length])
        assert folder.fault(name) is not None, length


@pytest.mark.parametrize("name", ["object.npy", "weird.npy"])
def test_an_array_whose_size_cannot_be_told_is_whole(folder: Folder, name: str) -> None:
    array = np.array([{}, None], dtype=object) if name == "object.npy" else np.zeros(3, dtype=[("a", "<i4")])
    folder.write(name, numpy_file(array))
    assert folder.fault() is None


def test_a_flipped_bit_in_a_small_record_of_a_torch_zip_is_found(folder: Folder) -> None:
    data = bytearray(torch_zip())
    data[data.index(b"step") + 1] ^= 1
    folder.write("a.pt", bytes(data))
    assert folder.fault() == "a.pt has a zip member whose bytes are not those that were written: archive/data.pkl"


def test_a_zip_whose_writer_made_no_checksums_is_whole(folder: Folder) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        folder.write("a.pt", torch_zip())
    finally:
        torch.serialization.set_crc32_options(before)
    assert folder.fault() is None


def test_a_large_record_is_read_only_by_a_thorough_look(folder: Folder) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a/data/0", bytes(2 * MIB))
    data = bytearray(made.getvalue())
    data[MIB] = 1
    folder.write("a.pt", bytes(data))
    assert folder.fault() is None
    fault = fault_of(folder.fd, {"a.pt": "a.pt"}, thorough=True)
    assert fault == "a.pt has a zip member whose bytes are not those that were written: a/data/0"


def test_a_record_that_is_not_where_the_directory_says_is_found(folder: Folder) -> None:
    data = bytearray(torch_zip())
    data[:4] = b"PK\x03\x05"
    folder.write("a.zip", b"PK\x03\x04" + bytes(data)[4:])
    data[data.index(b"PK\x03\x04", 10)] = 0
    folder.write("a.zip", b"PK\x03\x04" + bytes(data)[4:])
    fault = folder.fault()
    assert fault is not None
    assert "is not where its directory says" in fault


# -- distributed checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture
def distributed(folder: Folder) -> Folder:
    state = {"model": {"w": torch.arange(1000.0), "b": torch.ones(10)}, "step": 3}
    dcp.save(state, checkpoint_id=folder.path / "d", no_dist=True)
    return folder


def test_a_distributed_checkpoint_is_whole(distributed: Folder) -> None:
    assert distributed.fault() is None


def test_a_shard_that_the_metadata_names_must_be_there_and_long_enough(distributed: Folder) -> None:
    shard = distributed.path / "d" / "__0_0.distcp"
    before, data = shard.stat(), shard.read_bytes()
    ends = [at + 22 for at in range(len(data)) if data[at : at + 4] == b"PK\x05\x06"]
    os.truncate(shard, ends[-2])  # the last tensor is missing, and all of it
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert distributed.fault() == f"d/__0_0.distcp is cut off: d/.metadata says that {before.st_size} bytes are in it"
    (distributed.path / "d" / "__1_0.distcp").write_bytes(shard.read_bytes())
    os.utime(distributed.path / "d" / "__1_0.distcp", ns=(before.st_atime_ns, before.st_mtime_ns))
    shard.unlink()
    assert distributed.fault() == "d/.metadata names d/__0_0.distcp, which is missing"


def test_what_the_metadata_names_may_be_on_other_nodes(distributed: Folder) -> None:
    shard = distributed.path / "d" / "__0_0.distcp"
    assert distributed.awaited() == {}
    size = shard.stat().st_size
    shard.unlink()
    assert distributed.fault(part=0) is None
    assert distributed.awaited() == {"d/__0_0.distcp": size}


def test_a_shard_of_any_size_is_whole_to_its_last_byte_alone(folder: Folder) -> None:
    """It is several zip files one after another; what tells of the first is more than 64 KB from the end."""
    state = {str(number): torch.arange(20_000.0) for number in range(4)}
    dcp.save(state, checkpoint_id=folder.path, no_dist=True)
    assert folder.fault() is None
    data = (folder.path / "__0_0.distcp").read_bytes()
    assert data.find(b"PK\x05\x06") < len(data) - (1 << 16)
    assert folder.fault("__0_0.distcp", part=1) is None
    for end in (len(data) - 1, len(data) - 22, len(data) // 2 - 1, 30):
        (folder.path / "__0_0.distcp").write_bytes(data[:end])
        assert "is cut off" in str(folder.fault("__0_0.distcp", part=1)), end
    tail = data.rfind(b"PK\x06\x06")
    (folder.path / "__0_0.distcp").write_bytes(b"PK\x03\x04" + data[tail:])
    assert "has no beginning" in str(folder.fault("__0_0.distcp", part=1))


def test_no_prefix_of_the_metadata_is_whole(distributed: Folder) -> None:
    path = distributed.path / "d" / ".metadata"
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert distributed.fault() == "d/.metadata is cut off: its pickle does not end", length


def test_what_was_seen_to_come_last_may_look_older(distributed: Folder) -> None:
    """The wall clock was set back between the two."""
    os.utime(distributed.path / "d" / ".metadata", (1, 1))
    assert distributed.fault() == "d/.metadata is older than d/__0_0.distcp"
    names = {name: name for name in ("d/.metadata", "d/__0_0.distcp")}
    assert fault_of(distributed.fd, names, described=["d"]) is None


# -- hostile files ----------------------------------------------------------------------------------------------------


def endless_pickle() -> bytes:
    return b"\x80\x02" + b"]" * (40 * MIB)


def deep_pickle() -> bytes:
    return b"\x80\x04" + b"(" * (8 * MIB) + b"t" * (8 * MIB) + b"."


def growing_memo() -> bytes:
    return b"\x80\x04" + b"\x8c\x04text\x94" * (4 * MIB) + b"."


def huge_claim() -> bytes:
    return b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x" * 100


def endless_line() -> bytes:
    return b"\x80\x02c" + b"x" * (20 * MIB)


def many_members() -> bytes:
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    member = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 600_000  # whose directory is 28 MB
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(member) * count, len(local))
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(local) + len(member) * count, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + member * count + end64 + locator + end


def lists_of_lists() -> bytes:
    return b"[" + b"[]," * (5 * MIB) + b"[]]"


def wide_header() -> bytes:
    tensors = ",".join(f'"layer.{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(200_000))
    text = f"{{{tensors}}}".encode()
    return struct.pack("<Q", len(text)) + text


HOSTILE: list[tuple[str, Callable[[], bytes]]] = [
    ("a.pkl", endless_pickle),
    ("b.pkl", deep_pickle),
    ("c.pkl", growing_memo),
    ("d.pkl", huge_claim),
    ("e.pkl", endless_line),
    ("d/.metadata", growing_memo),
    ("d/.metadata", huge_claim),
    ("f.zip", many_members),
    ("g.json", lists_of_lists),
    ("h.safetensors", wide_header),
]


@pytest.mark.parametrize(("name", "make"), HOSTILE, ids=[make.__name__ for _, make in HOSTILE])
def test_no_file_takes_much_memory_or_time(folder: Folder, name: str, make: Callable[[], bytes]) -> None:
    folder.write(name, make())
    if name.endswith(".metadata"):
        folder.write("d/__0_0.distcp", b"x")
    pid = os.fork()
    if pid == 0:  # a process of its own, so that its memory can be measured
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.process_time()
        folder.fault()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        os._exit((grown > 96) + 2 * (time.process_time() - begun > 10))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "1: memory, 2: time"


def test_a_zip_inside_that_claims_any_size_is_cut_off(folder: Folder) -> None:
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 1 << 62, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 4, 1)
    folder.write("a.zip", b"PK\x03\x04" + end64 + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0, 0, 0))
    assert folder.fault() == "a.zip is cut off: the zip file has no end record"
