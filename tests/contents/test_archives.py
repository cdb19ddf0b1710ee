from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib

import pytest
import torch

from fuse_ckpt.contents.archives import Archive
from fuse_ckpt.contents.reading import BROKEN, Inflating, TooMuch, Unreadable
from fuse_ckpt.contents.scanning import scan_file
from tests.contents.samples import pickled, saved, torch_zip, window, zipped

WHOLE = [
    saved({"w": torch.ones(3), "v": [1, 2]}),
    torch_zip(pickled(b"N"), {"archive/data/0": b"x" * 30, "archive/byteorder": b"little"}),
    zipped([("a/data.pkl", pickled(b"N")), ("a/version", b"3"), ("a/b/data.pkl", pickled(b"}"))]),
]


def checked(data: bytes) -> Archive:
    archive = Archive(window(data))
    archive.check()
    return archive


@pytest.mark.parametrize("data", WHOLE)
def test_what_torch_and_python_write_is_read_as_they_read_it(data: bytes) -> None:
    archive = checked(data)
    assert archive.oddities == {}
    theirs = zipfile.ZipFile(io.BytesIO(data))
    assert {member.name: archive.content(member, 1 << 20) for member in archive.members} == {
        name: theirs.read(name) for name in theirs.namelist()
    }


def test_sizes_of_64_bits_are_read() -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive, archive.open("a/data.pkl", "w", force_zip64=True) as member:
        member.write(b"N.")
    [member_] = checked(made.getvalue()).members
    assert (member_.size, member_.packed) == (2, 2)


def test_more_parts_than_16_bits_count() -> None:
    data = zipped([(f"a/{number}", b"") for number in range(66_000)])
    archive = checked(data)
    assert len(archive.members) == 66_000
    assert archive.oddities == {}


def test_deflated_parts_are_inflated_where_they_are_read() -> None:
    data = random.Random(1).randbytes(1000) * 3000
    archive = checked(zipped([("a", data)], zipfile.ZIP_DEFLATED))
    [member] = archive.members
    opened = archive.opened(member)
    assert isinstance(opened, Inflating)
    for at in (0, 5, 1_000_000, 2_999_990, 17):
        assert opened.read(at, 10) == data[at : at + 10]
    with pytest.raises(Unreadable, match="cut off"):
        opened.read(2_999_995, 10)
    with pytest.raises(TooMuch):
        archive.content(member, 1_000_000)


def test_going_back_and_forth_ends() -> None:
    data = bytes(1000)
    opened = Inflating(window(zlib.compress(data)), len(data), zlib.decompressobj)
    for _ in range(Inflating.RESTARTS):
        assert opened.read(500, 1) == opened.read(0, 1) == b"\0"
    assert opened.read(500, 1) == b"\0"
    with pytest.raises(TooMuch, match="order"):
        opened.read(0, 1)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_not_read(method: int) -> None:
    archive = checked(zipped([("a", b"data")], method))
    with pytest.raises(TooMuch, match="compressed in a way"):
        archive.opened(archive.members[0])


def test_a_directory_that_is_too_long_is_not_read() -> None:
    with pytest.raises(TooMuch, match="longer than"):
        Archive(window(zipped([("a" * 200, b"")] + [(f"{n}", b"") for n in range(10)])), 500)


def test_torchs_top_is_that_of_the_first_part() -> None:
    archive = checked(zipped([("x/version", b""), ("y/data.pkl", b"")]))
    assert archive.top == "x/"
    assert archive.find("Y/DATA.pkl") is archive.members[1]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_mutilated_zip_that_is_safe_is_read_alike_by_all() -> None:
    chosen = random.Random(3)
    safe = 0
    for _ in range(4000):
        data = mutilated(chosen)
        if not data.startswith(b"PK\x03\x04") or not scan_file(window(data), "x.pt").safe:
            continue
        safe += 1
        archive = Archive(window(data))
        ours = [archive.content(one, 1 << 20) for one in archive.members if one.name.lower().endswith(".pkl")]
        for theirs in (by_python(data), by_torch(data)):
            assert all(one in ours for one in theirs), data
    assert safe > 200


def mutilated(chosen: random.Random) -> bytes:
    data = bytearray(chosen.choice(WHOLE))
    if chosen.random() < 0.1:
        other = chosen.choice(WHOLE)
        return bytes(data[: chosen.randrange(len(data))]) + other[chosen.randrange(len(other)) :]
    for _ in range(chosen.randint(1, 2)):
        directory = data.find(b"PK\x01\x02") % len(data)
        at = chosen.choice([chosen.randrange(len(data)), chosen.randrange(directory, len(data)), chosen.randrange(60)])
        way = chosen.random()
        if way < 0.7:
            data[at] = chosen.choice([0, 1, 255, chosen.randrange(256)])
        elif way < 0.85:
            del data[at : at + chosen.randint(1, 4)]
        else:
            data[at:at] = bytes(chosen.randint(1, 4))
    return bytes(data)


def by_python(data: bytes) -> list[bytes]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        return [archive.read(name) for name in archive.namelist() if name.lower().endswith(".pkl")]
    except (*BROKEN, zipfile.BadZipFile, NotImplementedError, OSError, zlib.error, struct.error):
        return []


def by_torch(data: bytes) -> list[bytes]:
    try:
        return [torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl")]
    except RuntimeError:
        return []
