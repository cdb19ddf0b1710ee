"""From a connection to a client of its object store: which configuration, whose credentials, how much patience."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from fuse_ckpt.errors import CredentialsRefused, StorageFailed, UsageError
from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.transfer import credentials
from fuse_ckpt.transfer.complaints import Where
from fuse_ckpt.transfer.names import check_bucket

Client: TypeAlias = AzureStore | GCSStore | LocalStore | S3Store
Environment: TypeAlias = Mapping[str, str]

PATIENCE = 180.0  # seconds that a request is tried again for; the credentials of a request must live that long
FIRST_PATIENCE = 10.0  # seconds, for the first request: a wrong endpoint is said soon
CONNECT_TIMEOUT = 10.0  # seconds

S3 = frozenset({Provider.S3, Provider.R2, Provider.MINIO})
# With one of these set, obstore finds credentials, or needs none, without asking the machine's own metadata service.
FOUND_BY_ITSELF = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_CHAINS = {
    Provider.GCS: "set GOOGLE_APPLICATION_CREDENTIALS, or name a file with storage create --credentials-file",
    Provider.AZURE: "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or name a file with "
    "storage create --credentials-file",
    Provider.FILE: "none are needed",
}
_AWS_CHAIN = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or name a file with "
    "storage create --credentials-file"
)


def check(connection: Connection) -> None:
    """Raise UsageError where a new connection lacks something, has too much, or what it says cannot be."""
    provider = connection.provider
    if provider is Provider.FILE:
        _check_directory(connection)
        return
    if connection.root is not None:
        raise UsageError("--root is for --provider file; an object store's paths begin with their bucket.")
    if provider in (Provider.R2, Provider.MINIO) and connection.endpoint is None:
        raise UsageError(f"--provider {provider} needs --endpoint URL: it has no address of its own.")
    if connection.endpoint is not None:
        _check_endpoint(connection.endpoint)
    if connection.bucket is not None:
        check_bucket(connection.bucket)
    _check_word("--region", connection.region or "x")
    if connection.credentials_file is not None:
        credentials.check_file(Path(connection.credentials_file))


def where(connection: Connection) -> Where:
    """What a complaint about the connection begins and ends with."""
    file = connection.credentials_file
    chain = _CHAINS.get(connection.provider, _AWS_CHAIN)
    leads_to = connection.root or connection.endpoint or str(connection.provider)
    return Where(connection.name, leads_to, f"check {file}" if file else chain)


def client(connection: Connection, bucket: str, environment: Environment, patience: float) -> Client:
    """A client of one bucket, or of the directory. Errors: UsageError (the credentials file), CredentialsRefused,
    StorageFailed (the directory is not there)."""
    if connection.provider is Provider.FILE:
        root = Path(connection.root or "/")
        if not root.is_dir():
            raise StorageFailed(f"{where(connection)}: the directory is not there: is its disk mounted?")
        return LocalStore(root)
    options: dict[str, Any] = {
        "client_options": _client_options(connection, patience),
        "retry_config": _retries(patience),
        "config": _configuration(connection, environment),
    }
    try:
        if connection.provider is Provider.GCS:
            return GCSStore(bucket, **options)
        if connection.provider is Provider.AZURE:
            return AzureStore(bucket, **options)
        return S3Store(bucket, **options, credential_provider=_provider(connection, environment))
    except BaseError:  # what it says may quote the credentials
        about = where(connection)
        raise CredentialsRefused(f"{about}: its credentials cannot be read as such: {about.credentials}.") from None


def _check_directory(connection: Connection) -> None:
    given = {
        "--endpoint": connection.endpoint,
        "--bucket": connection.bucket,
        "--region": connection.region,
        "--credentials-file": connection.credentials_file,
    }
    needless = next((option for option, value in given.items() if value is not None), None)
    if needless is not None:
        raise UsageError(f"{needless} means nothing with --provider file: its paths are below --root.")
    if connection.root is None:
        raise UsageError("--provider file needs --root DIR: the directory that its paths are below.")
    if not Path(connection.root).is_dir():
        raise UsageError(f"{connection.root} is not a directory: mkdir -p it first, or mount its disk.")


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        port_ok = False
        parts = urlsplit("")
    printable = endpoint.isascii() and endpoint.isprintable() and " " not in endpoint
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok or not printable:
        raise UsageError("--endpoint is no URL: give one as in https://s3.example.com or http://127.0.0.1:9000.")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UsageError(
            "--endpoint carries more than an address: it is kept and shown; credentials belong into --credentials-file."
        )


def _check_word(what: str, word: str) -> str:
    """Return `word` if a header and a URL can carry it, else raise UsageError; it may be a secret, and is not shown."""
    if not word.isascii() or not word.isprintable() or " " in word:
        raise UsageError(f"{what} has a character in it that none can have.")
    return word


def _client_options(connection: Connection, patience: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "timeout": timedelta(seconds=max(patience, CONNECT_TIMEOUT)),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
    }
    if connection.endpoint is not None and connection.endpoint.startswith("http:"):
        options["allow_http"] = True
    return options


def _retries(patience: float) -> dict[str, Any]:
    """As often as `patience` seconds allow, at most 15 s apart."""
    return {
        "max_retries": max(3, int(patience)),
        "retry_timeout": timedelta(seconds=patience),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=min(15.0, max(0.5, patience / 4))),
            "base": 2,
        },
    }


def _configuration(connection: Connection, environment: Environment) -> dict[str, Any]:
    """What is not a credential; for Google and Azure those too, which have no other way in."""
    if connection.provider is Provider.GCS:
        base = {"base_url": connection.endpoint} if connection.endpoint else {}
        return {**credentials.from_file(connection), **base}
    if connection.provider is Provider.AZURE:
        base = {"endpoint": connection.endpoint} if connection.endpoint else {}
        return {**credentials.from_file(connection), **base}
    said = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    region = connection.region or ("auto" if connection.provider is Provider.R2 else said or "us-east-1")
    found: dict[str, Any] = {"region": _check_word("The region", region), "conditional_put": "etag"}
    if connection.endpoint:
        # The second is what AWS_ENDPOINT_URL_S3 of the environment would overrule the first with.
        found |= {"endpoint": connection.endpoint, "aws_endpoint_url_s3": connection.endpoint}
    return found


def _provider(connection: Connection, environment: Environment) -> Callable[[], Any] | None:
    """Credentials of a file or a profile, as a callback: nothing of the environment can mix with them.

    None: obstore looks for them (environment, web identity, container, instance).
    """
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        _check_word(name, environment.get(name, ""))
    found = credentials.from_file(connection)
    if not found:
        if any(environment.get(name) for name in FOUND_BY_ITSELF):
            return None
        found = credentials.from_profile(environment)
    if not found and (connection.endpoint is not None or connection.provider is not Provider.S3):
        # Only AWS's own machines have credentials for AWS; asking for them elsewhere takes minutes.
        raise CredentialsRefused(f"{where(connection)}: there are no credentials for it: {_AWS_CHAIN}.")
    if not found:
        return None
    if "access_key_id" not in found or "secret_access_key" not in found:
        raise UsageError(f"{where(connection)}: its credentials lack the key or its secret: {_AWS_CHAIN}.")
    for name, value in found.items():
        _check_word(f"The {name} of {where(connection)}", value)
    answer = {
        "access_key_id": found["access_key_id"],
        "secret_access_key": found["secret_access_key"],
        "token": found.get("session_token"),
        "expires_at": None,
    }
    return lambda: answer
