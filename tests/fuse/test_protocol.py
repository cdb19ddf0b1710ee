"""The kernel's structs, byte for byte: linux/fuse.h."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from fuse_ckpt.fuse import protocol as p

# Sizes of linux/fuse.h on a 64-bit machine.
SIZES = [
    (p.IN_HEADER, 40), (p.OUT_HEADER, 16), (p.OPEN_IN, 8), (p.OPEN_OUT, 16), (p.CREATE_IN, 16), (p.FORGET_IN, 8),
    (p.BATCH_FORGET_IN, 8), (p.FORGET_ONE, 16), (p.FALLOCATE_IN, 32), (p.LSEEK_IN, 24), (p.LSEEK_OUT, 8),
    (p.COPY_IN, 56), (p.GETXATTR_IN, 8), (p.GETXATTR_OUT, 8), (p.WRITE_OUT, 8), (p.WRITE_IN, 40),
    (p.ACCESS_IN, 4), (p.READ_IN, 20), (p.ENTRY_OUT, 40), (p.ATTR_OUT, 16),
    (p.ATTR, 88), (p.INVAL_INODE_OUT, 24), (p.BACKING_MAP, 16),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "size"), SIZES)
def test_a_layout_is_as_long_as_the_kernels(layout: struct.Struct, size: int) -> None:
    assert layout.size == size


def test_an_entry_is_of_128_bytes_and_an_attribute_answer_of_104() -> None:
    assert (p.ENTRY_OUT.size + p.ATTR.size, p.ATTR_OUT.size + p.ATTR.size) == (128, 104)


def test_the_numbers_of_the_ioctls_are_the_kernels() -> None:
    assert (p.BACKING_OPEN, p.BACKING_CLOSE) == (0x4010E501, 0x4004E502)


def test_an_answer_says_its_length_and_whose_it_is() -> None:
    assert p.answer(7, b"body") == struct.pack("<IiQ", 20, 0, 7) + b"body"
    assert p.answer(7) == struct.pack("<IiQ", 16, 0, 7)


def test_a_refusal_carries_the_number_negated() -> None:
    assert p.refusal(1 << 63, 116) == struct.pack("<IiQ", 16, -116, 1 << 63)


def test_a_notification_is_nobodys_answer() -> None:
    message = p.forget_attributes(5)
    length, code, unique = p.OUT_HEADER.unpack_from(message)
    assert (length, code, unique) == (len(message), 2, 0)
    assert p.INVAL_INODE_OUT.unpack_from(message, 16) == (5, -1, 0)


def init_reply(size: int, flags: int, flags2: int = 0) -> bytearray:
    """libfuse's answer to INIT with so many bytes after the header: older ones are shorter."""
    body = struct.pack("<IIIIHHIIHHI", 7, 38, 131072, flags, 12, 9, 1 << 20, 1, 256, 0, flags2).ljust(64, b"\0")[:size]
    return bytearray(p.answer(3, body))


def read(reply: bytearray) -> dict[str, Any]:
    names = ("length", "error", "unique", "major", "minor", "readahead", "flags", "background", "congestion",
             "max_write", "granularity", "pages", "alignment", "flags2", "depth")  # fmt: skip
    return dict(zip(names, struct.unpack_from("<IiQIIIIHHIIHHII", reply), strict=True))


@pytest.mark.parametrize("size", [24, 28, 40, 64])
def test_passthrough_is_permitted_whatever_the_length_of_libfuses_reply(size: int) -> None:
    reply = init_reply(size, 0b1011)
    p.edit_init(reply, 2)
    found = read(reply)
    assert len(reply) == found["length"] == 80
    assert found["flags"] == 0b1011 | 1 << 30
    assert (found["flags2"], found["depth"]) == (1 << 5, 2)
    assert (found["major"], found["minor"], found["max_write"]) == (7, 38, 1 << 20)


def test_permitting_passthrough_keeps_what_else_was_agreed_and_takes_the_writeback_cache_back() -> None:
    reply = init_reply(64, 1 << 16 | 1 << 3, flags2=1 << 2)
    p.edit_init(reply, 1)
    found = read(reply)
    assert found["flags"] == 1 << 30 | 1 << 3
    assert found["flags2"] == 1 << 5 | 1 << 2
    assert found["pages"] == 256


def test_closes_are_not_held_back_behind_what_no_program_waits_for() -> None:
    reply = init_reply(64, 0)
    p.edit_init(reply, 0)
    assert read(reply)["background"] == p.BACKGROUND > 12


@pytest.mark.parametrize("offered", [0, 1 << 28, 0xFFFFFFFF])
def test_of_what_the_kernel_offers_only_the_memory_of_capabilities_is_taken(offered: int) -> None:
    reply = init_reply(64, 0)
    p.edit_init(reply, 1, offered)
    assert read(reply)["flags"] == 1 << 30 | (offered & 1 << 28)
