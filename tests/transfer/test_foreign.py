"""What another client of an object store is told: the same address and credentials as ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuse_ckpt.errors import (
    BucketMissing,
    CredentialsRefused,
    PermissionRefused,
    StorageFailed,
    Unreachable,
    UsageError,
)
from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.transfer import Access, Place, access_of

ENDPOINT = "http://127.0.0.1:9"
PAIR = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


def access(provider: Provider, environment: dict[str, str] | None = None, **more: object) -> Access:
    known = Connection("lake", provider, 1, **more)  # type: ignore[arg-type]
    return access_of(known, Place("box", "team/catalog"), environment or {}, 7.5)


def told(found: Access) -> dict[str, str]:
    """Without what says how patient to be."""
    patience = ("timeout", "connect_timeout", "retry_timeout", "max_retries")
    return {name: value for name, value in found.options.items() if name not in patience}


def private(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


def test_a_file_of_credentials_is_all_that_counts(tmp_path: Path) -> None:
    file = private(tmp_path / "f", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    environment = {**PAIR, "AWS_SESSION_TOKEN": "t", "AWS_REGION": "eu-west-1"}
    found = access(Provider.MINIO, environment, endpoint=ENDPOINT, credentials_file=file)
    assert (found.uri, found.settled) == ("s3://box/team/catalog", True)
    assert told(found) == {
        "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL": ENDPOINT,
        "allow_http": "true", "aws_conditional_put": "etag",
    }  # fmt: skip
    assert (found.options["retry_timeout"], found.options["max_retries"]) == ("7s", "7")


def test_the_environment_comes_before_a_profile_and_a_role_before_nothing(tmp_path: Path) -> None:
    file = private(tmp_path / "f", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    profile = {"AWS_SHARED_CREDENTIALS_FILE": file}
    by_environment = access(Provider.S3, {**PAIR, "AWS_SESSION_TOKEN": "t", **profile})
    assert [told(by_environment)[name] for name in (*PAIR, "AWS_SESSION_TOKEN")] == ["k", "s", "t"]
    assert told(access(Provider.S3, profile))["AWS_ACCESS_KEY_ID"] == "a"
    by_role = access(Provider.S3, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/token", **profile}, region="eu-north-1")
    assert (told(by_role), by_role.settled) == ({"AWS_REGION": "eu-north-1", "aws_conditional_put": "etag"}, False)
    assert told(access(Provider.R2, PAIR, endpoint="https://r2.test"))["AWS_REGION"] == "auto"


def test_google_and_azure_are_told_of_their_files(tmp_path: Path) -> None:
    key = private(tmp_path / "g", '{"private_key": ""}')
    google = access(Provider.GCS, endpoint=ENDPOINT, credentials_file=key)
    assert (google.uri, google.settled) == ("gs://box/team/catalog", True)
    assert told(google) == {"google_service_account": key, "google_base_url": ENDPOINT, "allow_http": "true"}
    lines = private(tmp_path / "a", "AZURE_STORAGE_ACCOUNT_NAME=n\nAZURE_STORAGE_ACCOUNT_KEY=a2V5\n")
    azure = access(Provider.AZURE, credentials_file=lines)
    assert (azure.uri, azure.settled) == ("az://box/team/catalog", True)
    assert told(azure) == {"azure_storage_account_name": "n", "azure_storage_account_key": "a2V5"}
    assert not access(Provider.AZURE).settled


def test_a_directory_is_told_by_its_path(tmp_path: Path) -> None:
    known = Connection("disk", Provider.FILE, 1, root=str(tmp_path / "my archive #1"))
    found = access_of(known, Place("", "team/catalog"), {}, 5.0)
    assert (found.uri, found.options) == ((tmp_path / "my archive #1/team/catalog").as_uri(), {})
    with pytest.raises(UsageError, match="another directory"):
        access_of(Connection("disk", Provider.FILE, 1, root=str(tmp_path / "a%41")), Place("", "x"), {}, 5.0)


def test_secrets_are_shown_nowhere() -> None:
    found = access(Provider.S3, {**PAIR, "AWS_SECRET_ACCESS_KEY": "the-secret"})
    assert "the-secret" in found.options.values()
    assert "the-secret" not in f"{found} {found!r} {found.complaint('status code: 403 the-secret')}"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Error performing PUT … status code: 403 Forbidden: <Code>AccessDenied</Code>", PermissionRefused),
        ("status code: 403 Forbidden: <Code>InvalidAccessKeyId</Code>", CredentialsRefused),
        ("status code: 404 Not Found: <Code>NoSuchBucket</Code>", BucketMissing),
        ("status code: 503 Slow Down", StorageFailed),
        ("HTTP error: error sending request, Connection refused", Unreachable),
    ],
)
def test_what_an_object_store_answered_is_told_as_ever(said: str, kind: type[StorageFailed]) -> None:
    assert type(access(Provider.S3, PAIR).complaint(said)) is kind


@pytest.mark.parametrize(
    "said",
    [
        "status code: 404 Not Found: <Code>NoSuchKey</Code>",
        "status code: 416 Range Not Satisfiable: <Code>InvalidRange</Code>",
        "Parquet error: Invalid Parquet file. Corrupt footer",
        "Failed to commit transaction: 0",
    ],
)
def test_what_is_about_a_table_is_no_complaint_about_the_object_store(said: str) -> None:
    assert access(Provider.S3, PAIR).complaint(said) is None
