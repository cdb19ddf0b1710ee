"""Names, keys and places: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_ckpt.errors import InvalidName, UsageError
from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.transfer import Place, check_connection_name, names, place_of

BUCKET = Connection("lake", Provider.S3, 1)
DIRECTORY = Connection("disk", Provider.FILE, 1, root="/archive")


@given(st.text(), st.text())
def test_no_two_files_have_one_key(first: str, second: str) -> None:
    if first != second:
        assert names.key_of(first) != names.key_of(second)


@given(st.binary())
def test_every_key_is_utf_8_without_control_characters(raw: bytes) -> None:
    key = names.key_of(raw.decode(errors="surrogateescape"))
    key.encode()
    assert all(char >= " " and char not in "\\\x7f" for char in key)


@pytest.mark.parametrize(
    "path", ["model.safetensors", "a/b c/d.bin", "100%.txt", "é", "x=1,y=2", "[a]{b}#?*", "a/fuse-ckpt.json"]
)
def test_an_ordinary_name_is_its_own_key(path: str) -> None:
    assert names.key_of(path) == path


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("fuse-ckpt.json", "%66use-ckpt.json"),
        ("%66use-ckpt.json", "%2566use-ckpt.json"),
        ("fuse-ckpt.partial.json", "%66use-ckpt.partial.json"),
        ("a\nb", "a%0Ab"),
        ("a%0Ab", "a%250Ab"),
        ("caf\udce9", "caf%E9"),
        ("back\\slash", "back%5Cslash"),
        ("\x85", "%C2%85"),
    ],
)
def test_what_no_key_can_carry_is_written_in_hex(path: str, key: str) -> None:
    assert names.key_of(path) == key


@pytest.mark.parametrize(
    ("path", "bucket", "prefix"),
    [("models/a/b", "models", "a/b"), ("models", "models", ""), ("/models/a/", "models", "a"), ("m/ü x", "m", "ü x")],
)
def test_a_path_begins_with_its_bucket(path: str, bucket: str, prefix: str) -> None:
    assert place_of(BUCKET, path, "--destination-path") == Place(bucket, prefix)


def test_a_path_of_a_directory_is_below_it() -> None:
    assert place_of(DIRECTORY, "a/b/", "--destination-path") == Place("", "a/b")


@pytest.mark.parametrize("connection", [BUCKET, DIRECTORY])
@pytest.mark.parametrize(
    "path", ["", "/", "a//b", "../a", "a/../b", "a/./b", "a/..", "a\nb", "a\\b", "a\0b", "a/\udce9"]
)
def test_a_path_that_leads_elsewhere_is_refused(connection: Connection, path: str) -> None:
    with pytest.raises(UsageError, match="--destination-path") as caught:
        place_of(connection, path, "--destination-path")
    assert str(caught.value).isprintable()


def test_an_absolute_path_is_not_below_a_directory() -> None:
    with pytest.raises(UsageError):
        place_of(DIRECTORY, "/etc/passwd", "--destination-path")


@pytest.mark.parametrize("name", ["", "-x", ".x", "a b", "a/b", "é", "x" * 201, "a\n"])
def test_a_connection_has_a_plain_name(name: str) -> None:
    with pytest.raises(InvalidName):
        check_connection_name(name)
    assert check_connection_name("lake-2.eu_1") == "lake-2.eu_1"


@pytest.mark.parametrize("bucket", ["my bucket", "ü", "a?b", "a#b", "a%41", "-x", ".x", "a\tb", "x" * 223, "a@b"])
def test_a_bucket_is_nothing_that_would_change_a_url(bucket: str) -> None:
    with pytest.raises(UsageError):
        place_of(BUCKET, f"{bucket}/x", "--destination-path")


def test_buckets_of_every_provider_are_taken() -> None:
    for bucket in ("models", "my.models-2", "Old_Style", "$root", "x" * 222):
        assert place_of(BUCKET, f"{bucket}/x", "--destination-path").bucket == bucket
