from __future__ import annotations

import pytest

from fuse_ckpt.errors import CorruptRecord
from fuse_ckpt.model import Checkpoint, Entry, Job, Kind, Manifest, Metadata, Shape, State
from fuse_ckpt.store.codec import manifest_from_json, manifest_to_json, seal, unseal

JOB = Job("resnet", 17)
HEAD = Checkpoint("id", "job", "n\udcff", Shape.FLAT, 1, "0", State.AVAILABLE, 1, 2, 3, 1, Metadata(step=4))
ODD = Manifest(HEAD, (Entry("caf\udce9/ü", Kind.FILE, 0o644, 1, 3, "00" * 32),))


def test_what_was_sealed_is_unsealed() -> None:
    assert unseal(b"k", seal(b"k", JOB), Job, bytes.decode) == JOB


@pytest.mark.parametrize("position", range(len(seal(b"k", JOB))))
def test_any_flipped_bit_is_noticed_and_names_the_record(position: int) -> None:
    record = bytearray(seal(b"k", JOB))
    record[position] ^= 4
    with pytest.raises(CorruptRecord, match="record of k is damaged"):
        unseal(b"k", bytes(record), Job, bytes.decode)


def test_a_record_under_another_key_is_damaged() -> None:
    with pytest.raises(CorruptRecord):
        unseal(b"other", seal(b"k", JOB), Job, bytes.decode)


@pytest.mark.parametrize("length", [0, 1, 8, 9])
def test_a_record_cut_short_is_damaged(length: int) -> None:
    with pytest.raises(CorruptRecord):
        unseal(b"k", seal(b"k", JOB)[:length], Job, bytes.decode)


def test_paths_that_are_not_utf8_survive_the_index() -> None:
    assert unseal(b"k", seal(b"k", ODD), Manifest, bytes.decode) == ODD


def test_paths_that_are_not_utf8_survive_the_manifest_file() -> None:
    assert manifest_from_json(manifest_to_json(ODD), "it") == ODD


def test_a_manifest_file_of_ordinary_names_is_plain_readable_json() -> None:
    plain = Manifest(Checkpoint("id", "job", "café", Shape.FLAT, 1, "0", State.AVAILABLE, 1, 2, 3, 1, Metadata()), ())
    assert '"café"' in manifest_to_json(plain).decode()
    assert manifest_from_json(manifest_to_json(plain), "it") == plain


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"checkpoint": 1}', b"\xff", b"[" * 100_000])
def test_a_damaged_manifest_file_is_corrupt_and_nothing_else(data: bytes) -> None:
    with pytest.raises(CorruptRecord, match=r"ab\.json"):
        manifest_from_json(data, "ab.json")
