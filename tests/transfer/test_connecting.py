"""Which configuration a connection gives, whose credentials it takes, and what is refused. No network is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fuse_ckpt.errors import CredentialsRefused, StorageFailed, UsageError
from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.transfer import check_connection, connecting, credentials

SECRET = "s3cr3t-that-nobody-may-see"
HTTP = "http://127.0.0.1:9"


def connection(provider: Provider = Provider.S3, **more: Any) -> Connection:
    return Connection("lake", provider, 1, **more)


def private(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


AWS = f"[default]\naws_access_key_id = the-default\naws_secret_access_key = {SECRET}\n"
SEVERAL = AWS + f"[lake]\naws_access_key_id=the-lakes\naws_secret_access_key={SECRET}\naws_session_token = tok\n"
LINES = f"# a comment\nexport AWS_ACCESS_KEY_ID='a-line'\nAWS_SECRET_ACCESS_KEY=\"{SECRET}\"\nOTHER=1\n"


@pytest.mark.parametrize(("text", "key"), [(AWS, "the-default"), (SEVERAL, "the-lakes"), (LINES, "a-line")])
def test_a_file_is_read_as_awss_own_or_as_lines(tmp_path: Path, text: str, key: str) -> None:
    found = credentials.from_file(connection(credentials_file=private(tmp_path / "f", text)))
    assert found["access_key_id"] == key
    assert found["secret_access_key"] == SECRET


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused_with_the_line_that_mends_it(tmp_path: Path, mode: int) -> None:
    file = Path(private(tmp_path / "f", AWS))
    file.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {file}") as caught:
        check_connection(connection(credentials_file=str(file)))
    assert SECRET not in str(caught.value)


def test_a_file_that_is_not_there_or_says_nothing_is_refused(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none", None), (tmp_path / "empty", ""), (tmp_path / "other", f"PASSWORD={SECRET}")):
        if text is not None:
            private(path, text)
        with pytest.raises(UsageError, match=str(path)) as caught:
            connecting.client(connection(endpoint=HTTP, credentials_file=str(path)), "b", {}, 1)
        assert SECRET not in str(caught.value)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(UsageError, match="not text"):
        check_connection(connection(credentials_file=str(tmp_path / "binary")))
    with pytest.raises(UsageError, match="not a regular file"):
        check_connection(connection(credentials_file=str(tmp_path)))
    key_alone = private(tmp_path / "half", "AWS_ACCESS_KEY_ID=a")
    with pytest.raises(UsageError, match="lack"):
        connecting.client(connection(endpoint=HTTP, credentials_file=key_alone), "b", {}, 1)


def test_credentials_are_no_part_of_what_the_client_shows(tmp_path: Path) -> None:
    file = private(tmp_path / "f", AWS)
    client = connecting.client(connection(endpoint=HTTP, credentials_file=file), "b", {}, 1)
    assert SECRET not in repr(client)
    assert SECRET not in str(client.config)  # type: ignore[union-attr]


def test_nothing_of_the_environment_mixes_with_a_file(tmp_path: Path) -> None:
    strange = {"AWS_SESSION_TOKEN": "another-account's", "AWS_ACCESS_KEY_ID": "another"}
    provider = connecting._provider(connection(credentials_file=private(tmp_path / "f", AWS)), strange)
    assert provider is not None
    assert provider() == {
        "access_key_id": "the-default",
        "secret_access_key": SECRET,
        "token": None,
        "expires_at": None,
    }


@pytest.mark.parametrize("bad", ["a key", "ké", "k\tey", "k\x1bey"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(tmp_path: Path, bad: str) -> None:
    """obstore would end with a panic."""
    file = private(tmp_path / "f", AWS.replace("the-default", bad))
    with pytest.raises(UsageError, match="access_key_id of Storage lake") as caught:
        connecting.client(connection(endpoint=HTTP, credentials_file=file), "b", {}, 1)
    assert bad not in str(caught.value)
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY has a character"):
        connecting.client(connection(endpoint=HTTP), "b", {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": bad}, 1)
    with pytest.raises(UsageError, match="region has"):
        connecting.client(connection(endpoint=HTTP), "b", {"AWS_ACCESS_KEY_ID": "x", "AWS_REGION": bad}, 1)
    with pytest.raises(UsageError, match="--region has"):
        check_connection(connection(region=bad))
    with pytest.raises(UsageError, match="No bucket"):
        check_connection(connection(bucket=bad))


def test_a_profile_is_looked_up_where_the_environment_has_no_key(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    private(tmp_path / ".aws/credentials", SEVERAL.replace("[lake]", "[work]"))
    for environment, key in (({}, "the-default"), ({"AWS_PROFILE": "work"}, "the-lakes")):
        found = connecting._provider(connection(endpoint=HTTP), {"HOME": str(tmp_path), **environment})
        assert found is not None
        assert found()["access_key_id"] == key
    assert connecting._provider(connection(), {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "env"}) is None


@pytest.mark.parametrize("provider", [Provider.S3, Provider.R2, Provider.MINIO])
def test_without_any_credentials_nobody_waits_for_a_metadata_service(provider: Provider) -> None:
    with pytest.raises(CredentialsRefused, match=r"AWS_ACCESS_KEY_ID.*--credentials-file"):
        connecting.client(connection(provider, endpoint=HTTP), "b", {"HOME": "/nonexistent"}, 1)
    assert connecting._provider(connection(), {"HOME": "/nonexistent"}) is None  # AWS's own machines have a role


@pytest.mark.parametrize(
    ("given", "environment", "region"),
    [
        (connection(region="eu-west-1"), {"AWS_REGION": "x"}, "eu-west-1"),
        (connection(), {"AWS_REGION": "us-west-2"}, "us-west-2"),
        (connection(), {"AWS_DEFAULT_REGION": "ap-south-1"}, "ap-south-1"),
        (connection(), {}, "us-east-1"),
        (connection(Provider.R2, endpoint=HTTP), {"AWS_REGION": "x"}, "auto"),
    ],
)
def test_the_region_is_the_connections_then_the_environments(
    given: Connection, environment: dict[str, str], region: str
) -> None:
    assert connecting._configuration(given, environment)["region"] == region


def test_the_endpoint_of_a_connection_is_not_overruled_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.invalid")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.invalid")
    given = connection(endpoint=HTTP, credentials_file=private(tmp_path / "f", AWS))
    assert "elsewhere" not in str(connecting.client(given, "b", {}, 1).config)  # type: ignore[union-attr]


def test_google_and_azure_are_built_from_their_files(tmp_path: Path) -> None:
    import obstore.store

    key = {"gcs_base_url": HTTP, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    google = private(tmp_path / "google.json", json.dumps(key))
    given = connection(Provider.GCS, credentials_file=google)
    assert isinstance(connecting.client(given, "box", {}, 1), obstore.store.GCSStore)
    private(tmp_path / "google.json", json.dumps({"type": "service_account", "private_key": SECRET}))
    assert connecting._configuration(given, {}) == {"application_credentials": google}
    with pytest.raises(CredentialsRefused, match=r"cannot be read as such: check .*google\.json") as caught:
        connecting.client(given, "box", {}, 1)
    assert SECRET not in str(caught.value)
    lines = f"AZURE_STORAGE_ACCOUNT_NAME=acc\nAZURE_STORAGE_ACCOUNT_KEY={SECRET.encode().hex()}\n"
    azure = connection(Provider.AZURE, credentials_file=private(tmp_path / "azure", lines), endpoint="https://a.test")
    assert isinstance(connecting.client(azure, "box", {}, 1), obstore.store.AzureStore)


@pytest.mark.parametrize(
    "endpoint",
    [
        "not a url", "s3.example.com", "ftp://x", "http://", "http://user:pw@host", "https://h/?sig=x", "http://h:99999",
        "http://h\nx", "http://ü", "http://h/#f", "http://[::1", "http://h:0",
    ],
)  # fmt: skip
def test_an_endpoint_that_is_none_or_carries_a_secret_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="--endpoint") as caught:
        check_connection(connection(endpoint=endpoint))
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (connection(Provider.R2), "--endpoint"),
        (connection(Provider.MINIO), "--endpoint"),
        (connection(root="/tmp"), "--root"),
        (connection(Provider.FILE), "--root DIR"),
        (connection(Provider.FILE, root="/nonexistent/dir"), "mkdir -p"),
        (connection(Provider.FILE, root="/tmp", endpoint=HTTP), "--endpoint means nothing"),
        (connection(Provider.FILE, root="/tmp", bucket="b"), "--bucket means nothing"),
        (connection(Provider.FILE, root="/tmp", credentials_file="/f"), "--credentials-file means nothing"),
    ],
)
def test_what_a_provider_lacks_or_has_no_use_for_is_said(given: Connection, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        check_connection(given)


def test_a_directory_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="is its disk mounted"):
        connecting.client(connection(Provider.FILE, root=str(tmp_path / "gone")), "", {}, 1)
    assert not (tmp_path / "gone").exists()
