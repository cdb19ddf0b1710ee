from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fuse_ckpt.staging.validate import awaited, fault_of


class Folder:
    """A directory of files, and what is wrong with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def write(self, name: str, data: bytes | str, mtime: int = 1000) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        os.utime(path, (mtime, mtime))

    def fault(self, *names: str, part: int | None = None) -> str | None:
        return fault_of(self.fd, self._files(*names), part=part)

    def awaited(self, *names: str) -> dict[str, int]:
        return awaited(self.fd, self._files(*names))

    def _files(self, *names: str) -> dict[str, str]:
        everything = (str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir())
        return {name: name for name in names or everything}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path)
    yield made
    os.close(made.fd)


def torch_zip(nested: bytes = b"") -> bytes:
    made = io.BytesIO()
    blob = torch.frombuffer(bytearray(nested), dtype=torch.uint8) if nested else torch.zeros(0)
    torch.save({"step": 3, "w": torch.ones(20), "blob": blob}, made)
    return made.getvalue()


def zip_of(*names: str, force_zip64: bool = False, comment: bytes = b"") -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            with archive.open(name, "w", force_zip64=force_zip64) as member:
                member.write(b"0123456789" * 20)
        archive.comment = comment
    return made.getvalue()


def safetensors(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(first: Any, last: Any) -> dict[str, object]:
    whole = type(first) is type(last) is int
    return {"dtype": "U8", "shape": [last - first] if whole else [1], "data_offsets": [first, last]}


def test_what_torch_and_safetensors_write_is_whole(folder: Folder) -> None:
    folder.write("a.pt", torch_zip())
    save_file({"w": torch.ones(3), "none": torch.zeros(0)}, folder.path / "a.safetensors", {"step": "3"})
    assert folder.fault() is None


@pytest.mark.parametrize("data", [torch_zip(), torch_zip(nested=zip_of("inner"))], ids=["plain", "zip inside"])
def test_no_prefix_of_a_torch_zip_is_whole(folder: Folder, data: bytes) -> None:
    assert _whole_prefixes(folder, "a.pt", data) == []


def test_no_prefix_of_a_safetensors_file_is_whole(folder: Folder) -> None:
    data = safetensors({"a": tensor(0, 4), "b": tensor(4, 40)}, bytes(40))
    assert _whole_prefixes(folder, "a.safetensors", data) == []


def test_no_prefix_of_a_json_object_is_whole(folder: Folder) -> None:
    data = json.dumps({"a": [1, {"b": "c"}], "ü": None}).encode()
    assert _whole_prefixes(folder, "a.json", data) == []


def _whole_prefixes(folder: Folder, name: str, data: bytes) -> list[int]:
    """The lengths at which a cut would not be noticed; `data` itself must be whole."""
    folder.write(name, data)
    assert folder.fault(name) is None
    whole = []
    for length in reversed(range(len(data))):
        os.truncate(folder.path / name, length)
        if folder.fault(name) is None:
            whole.append(length)
    return whole


@pytest.mark.parametrize(
    "data",
    [
        zip_of("a/data.pkl", "a/data/0", force_zip64=True),
        zip_of("a", comment=b"a comment PK\x05\x06 with a false end record"),
        torch_zip() + b"the tail of a longer file",
    ],
    ids=["zip64", "comment", "tail"],
)
def test_unusual_zips_are_whole(folder: Folder, data: bytes) -> None:
    folder.write("a.ckpt", data)
    assert folder.fault() is None


def test_sizes_beyond_4_gib_are_read_from_the_zip64_field(folder: Folder) -> None:
    name, size = b"a/data/0", 5 << 30
    start = 30 + len(name)
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), 0) + name
    extra = struct.pack("<2HQQ", 1, 16, size, size)
    sizes = (0, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra), 0, 0, 0, 0, 0)
    member = struct.pack("<4s4B4H3L5H2L", b"PK\x01\x02", 45, 3, 45, 0, 0, 0, 0, 0, *sizes) + name + extra
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(member), start + size)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size + len(member), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    with (folder.path / "big.pt").open("wb") as file:
        file.write(local)
        file.seek(start + size)  # a hole: nothing of it may be read
        file.write(member + end64 + locator + end)
    assert folder.fault() is None
    with (folder.path / "big.pt").open("r+b") as file:
        file.seek(start + size + len(member) - 8)
        file.write(struct.pack("<Q", size + 1))
    assert folder.fault() == "big.pt has a zip member that reaches beyond its data"


def test_a_zip_whose_directory_is_garbage_is_not_whole(folder: Folder) -> None:
    data = bytearray(zip_of("a", "b"))
    at = data.rindex(b"PK\x01\x02")
    data[at : at + 4] = b"\0\0\0\0"
    folder.write("a.npz", bytes(data))
    assert folder.fault() == "a.npz has a broken zip directory"


@pytest.mark.parametrize(
    "name", ["a.pt", "a.pth", "a.ckpt", "a.bin", "a.npz", "a.keras", "a.zip", "a.h5", "a.pkl", "a.npy"]
)
def test_an_empty_weights_file_is_not_whole(folder: Folder, name: str) -> None:
    folder.write(name, b"")
    assert folder.fault() == f"{name} is empty"


@pytest.mark.parametrize("name", ["notes.txt", "done", "raw.dat"])
def test_other_files_may_be_empty(folder: Folder, name: str) -> None:
    folder.write(name, b"")
    assert folder.fault() is None


def test_a_format_that_cannot_be_checked_counts_as_whole(folder: Folder) -> None:
    for name in ("raw.bin", "weights.gguf", "data.unknown"):
        folder.write(name, b"\x80\x02 whatever this is")
    assert folder.fault() is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (safetensors({"a": tensor(0, 4)}, bytes(8)), "its header says"),
        (
            safetensors({"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 4]}}, bytes(4)),
            "does not fit its bytes",
        ),
        (safetensors({"a": tensor(0, 4), "b": tensor(6, 8)}, bytes(8)), "gaps"),
        (safetensors({"a": tensor(0, 4), "b": tensor(2, 8)}, bytes(8)), "overlap"),
        (safetensors({"a": tensor(0, "4")}, bytes(4)), "cannot be read"),
        (safetensors({"a": tensor(True, 4)}, bytes(4)), "cannot be read"),
        (safetensors({"a": {}}, b""), "cannot be read"),
        (safetensors([], b""), "cannot be read"),
        (struct.pack("<Q", 2) + b"{{", "cannot be read"),
        (struct.pack("<Q", 1 << 62), "cut off"),
        (bytes(100), "cannot be read"),
    ],
)
def test_a_safetensors_file_whose_header_is_wrong_is_not_whole(folder: Folder, data: bytes, reason: str) -> None:
    folder.write("a.safetensors", data)
    fault = folder.fault()
    assert fault is not None
    assert reason in fault


@pytest.mark.parametrize(
    "text", ["{}", "[NaN, Infinity]", "1" * 5000, '{"a": 1}\n{"a": 2}\n', "[" * 10**5 + "]" * 10**5]
)
def test_unusual_json_is_whole(folder: Folder, text: str) -> None:
    folder.write("metrics.json", text)
    assert folder.fault() is None


@pytest.mark.parametrize("data", [b"", b"hello", b'{"a": 1', b"\xff\xfe\xfd"])
def test_text_that_is_not_json_is_not_whole(folder: Folder, data: bytes) -> None:
    folder.write("trainer_state.json", data)
    assert folder.fault() == "trainer_state.json is not JSON, or is cut off"
    (folder.path / "trainer_state.json").unlink()
    folder.write("config.json", data)
    assert folder.fault() is None, "a config.json that cannot be read costs MODEL and VERSION, no more"


def test_a_json_file_longer_than_16_mib_is_taken_as_whole(folder: Folder) -> None:
    folder.write("big.json", b"[" * (16 * 1024 * 1024 + 1))
    assert folder.fault() is None


def test_every_shard_that_an_index_names_must_be_there(folder: Folder) -> None:
    folder.write("u/m.safetensors.index.json", json.dumps({"weight_map": {"a": "m-1.bin", "b": ["m-2.bin"], "c": 3}}))
    folder.write("u/m-1.bin", b"x")
    assert folder.fault() == "u/m.safetensors.index.json names m-2.bin, which is missing"
    folder.write("u/m-2.bin", b"x")
    assert folder.fault() is None


def test_a_distributed_checkpoint_is_whole_once_its_metadata_follows(folder: Folder) -> None:
    folder.write("d/__0_0.distcp", b"x", mtime=2000)
    assert folder.fault() == "d/__0_0.distcp has no .metadata beside it"
    folder.write("d/.metadata", b"x", mtime=1999)
    assert folder.fault() == "d/.metadata is older than d/__0_0.distcp"
    folder.write("d/.metadata", b"x", mtime=2000)
    assert folder.fault() is None


def test_of_several_nodes_the_first_alone_writes_the_metadata(folder: Folder) -> None:
    folder.write("d/__1_0.distcp", b"x", mtime=2000)
    assert folder.fault(part=1) is None
    assert folder.fault(part=0) == "d/__1_0.distcp has no .metadata beside it"
    assert folder.awaited() == {"d/.metadata": 0}
    folder.write("d/.metadata", b"x", mtime=1999)
    assert folder.fault(part=1) == "d/.metadata is older than d/__1_0.distcp"
    assert folder.awaited() == {}


def test_the_shards_of_an_index_may_be_on_other_nodes(folder: Folder) -> None:
    folder.write("u/m.safetensors.index.json", json.dumps({"weight_map": {"a": "m-1.bin", "b": ["m-2.bin"], "c": 3}}))
    folder.write("u/m-1.bin", b"x")
    assert folder.fault(part=0) is None
    assert folder.awaited() == {"u/m-2.bin": 0}
    folder.write("u/m.safetensors.index.json", "{")
    assert folder.fault(part=0) == "u/m.safetensors.index.json is not JSON, or is cut off"


def test_a_metadata_file_of_each_rank_will_do(folder: Folder) -> None:
    for rank in (0, 1):
        folder.write(f"__{rank}_0.distcp", b"x")
    folder.write("__0.metadata", b"x")
    assert folder.fault() == "__1_0.distcp has no .metadata beside it"
    folder.write("__1.metadata", b"x")
    assert folder.fault() is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".tmpA1b2C3", "a temporary file, .tmpA1b2C3, is left"),
        ("sub.tmp/a.pt", "a temporary file, sub.tmp/a.pt, is left"),
        ("x-unfinished", "x-unfinished says that the save was not finished"),
    ],
)
def test_a_name_can_say_that_the_save_was_not_finished(folder: Folder, name: str, reason: str) -> None:
    folder.write(name, b"")
    assert folder.fault() == reason


def test_a_file_that_is_gone_is_missing(folder: Folder) -> None:
    assert folder.fault("gone/a.pt") == "gone/a.pt is missing"


def test_symlinks_and_pipes_are_not_opened(folder: Folder) -> None:
    os.symlink("/etc/hostname", folder.path / "link.json")
    os.mkfifo(folder.path / "pipe.pt")
    assert folder.fault() is None


def test_a_reason_is_one_line_whatever_the_name(folder: Folder) -> None:
    folder.write("a\n\x1b[2J.json", b"{")
    fault = folder.fault()
    assert fault is not None
    assert fault.isprintable()
