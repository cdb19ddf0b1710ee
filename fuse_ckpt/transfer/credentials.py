"""The file that a connection's credentials are in. Read when it is needed, kept nowhere, never part of a message.

    [default]                     AWS's own form, for s3, r2 and minio; a section called as the connection comes first
    aws_access_key_id = …
    aws_secret_access_key = …

    AZURE_STORAGE_ACCOUNT_NAME=…  KEY=VALUE lines without a section, as in an environment file, for all of these
    AZURE_STORAGE_ACCOUNT_KEY=…

For gcs it is the JSON file that Google gives out (a service account's key, or application default credentials).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from fuse_ckpt.errors import UsageError
from fuse_ckpt.model import Connection, Provider

FILE_MAX = 1 << 20  # bytes

# Names in a file, in lower case → obstore's names.
_AWS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "access_key_id": "access_key_id",
    "secret_access_key": "secret_access_key",
    "session_token": "session_token",
}
_AZURE = {
    "azure_storage_account_name": "account_name",
    "azure_storage_account_key": "account_key",
    "azure_storage_sas_token": "sas_key",
    "azure_storage_client_id": "client_id",
    "azure_storage_client_secret": "client_secret",
    "azure_storage_tenant_id": "tenant_id",
    "azure_client_id": "client_id",
    "azure_client_secret": "client_secret",
    "azure_tenant_id": "tenant_id",
}


def check_file(path: Path) -> None:
    """Raise UsageError where a credentials file is missing, or others may read it."""
    _read(path)


def from_file(connection: Connection) -> dict[str, str]:
    """obstore's configuration of the connection's credentials file; empty where it has none. Errors: UsageError."""
    if connection.credentials_file is None:
        return {}
    path = Path(connection.credentials_file)
    text = _read(path)
    if connection.provider is Provider.GCS:
        # A key of an emulator has no type, and only the older way of giving a key takes it.
        return {"application_credentials" if '"type"' in text else "service_account": str(path)}
    known = _AZURE if connection.provider is Provider.AZURE else _AWS
    found = {known[key]: value for key, value in _section(text, connection.name).items() if key in known}
    if not found:
        raise UsageError(
            f"The credentials file {path} names none of {', '.join(sorted(known)[:3])} …: write KEY=VALUE lines."
        )
    return found


def from_profile(environment: Mapping[str, str]) -> dict[str, str]:
    """The static keys of AWS's credentials file, of AWS_PROFILE or the default; empty where there are none."""
    home = environment.get("HOME", "")
    path = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or f"{home}/.aws/credentials")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return {}
    name = environment.get("AWS_PROFILE") or "default"
    return {_AWS[key]: value for key, value in _section(text, name, strict=True).items() if key in _AWS}


def _read(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(f"The credentials file {path} cannot be read: {error.strerror}.") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"The credentials file {path} is not a regular file.")
        if status.st_mode & 0o077:
            raise UsageError(f"The credentials file {path} can be read by others: chmod 600 {path}")
        return os.read(fd, FILE_MAX).decode()
    except UnicodeDecodeError:
        raise UsageError(f"The credentials file {path} is not text.") from None
    finally:
        os.close(fd)


def _section(text: str, name: str, *, strict: bool = False) -> Mapping[str, str]:
    """The KEY=VALUE lines that count: of the section `name`, else (unless `strict`) of [default], else those before
    any section."""
    sections: dict[str, dict[str, str]] = {"": {}}
    current = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            current = line[1:-1].strip().removeprefix("profile ")
            sections.setdefault(current, {})
        elif "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.removeprefix("export ").partition("=")
            sections[current][key.strip().lower()] = value.strip().strip("\"'")
    if strict:
        return sections.get(name, {})
    return sections.get(name) or sections.get("default") or sections[""]
