"""What another client of the same object store has to be told: its address, and the credentials that we would use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from fuse_ckpt.errors import StorageFailed, UsageError
from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.transfer import complaints, connecting, credentials
from fuse_ckpt.transfer.names import Place, key_of

# Of the environment's variables those that speak of credentials, addresses and ways to them begin so.
FAMILIES = ("AWS_", "AZURE_", "GOOGLE_")

_KEYS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}


class Access(Struct, frozen=True):
    """`options` are as object_store names them; they hold secrets, and are for no message, file or argument.

    `settled`: they are all that is needed, so that nothing of the environment may mix with them (`FAMILIES`).
    """

    uri: str
    options: dict[str, str]
    settled: bool
    where: complaints.Where

    def complaint(self, said: str) -> StorageFailed | None:
        """What the object store's answer, or the lack of one, in those words means; None where they are of neither."""
        return complaints.answer_in(said, self.where, self.uri)

    def __repr__(self) -> str:
        return f"Access({self.uri!r})"


def access_of(connection: Connection, place: Place, environment: Mapping[str, str], patience: float) -> Access:
    """How to get to `place`. Errors: UsageError (the credentials file; a directory that has no address)."""
    where = connecting.where(connection)
    if connection.provider is Provider.FILE:
        path = Path(connection.root or "/") / place.prefix
        if key_of(str(path)) != str(path):
            raise UsageError(f"{path} has a %XX in its name, which deltalake cannot address: use another directory.")
        return Access(path.as_uri(), {}, True, where)
    options = {
        "timeout": f"{max(1, int(patience))}s",
        "connect_timeout": f"{int(connecting.CONNECT_TIMEOUT)}s",
        "retry_timeout": f"{max(1, int(patience))}s",
        "max_retries": str(max(3, int(patience))),
    }
    if connection.endpoint is not None and connection.endpoint.startswith("http:"):
        options["allow_http"] = "true"
    scheme, more, settled = _FINDERS.get(connection.provider, _s3)(connection, environment)
    return Access(f"{scheme}://{place}", {**options, **more}, settled, where)


Found = tuple[str, dict[str, str], bool]


def _s3(connection: Connection, environment: Mapping[str, str]) -> Found:
    said = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    auto = "auto" if connection.provider is Provider.R2 else said or "us-east-1"
    options = {"AWS_REGION": connection.region or auto, "aws_conditional_put": "etag"}
    if connection.endpoint:
        options["AWS_ENDPOINT_URL"] = connection.endpoint
    found = credentials.from_file(connection)
    if not found and environment.get("AWS_ACCESS_KEY_ID"):
        found = {key: environment[name] for key, name in _KEYS.items() if environment.get(name)}
    if not found and not any(environment.get(name) for name in connecting.FOUND_BY_ITSELF):
        found = credentials.from_profile(environment)
    return "s3", options | {_KEYS[key]: value for key, value in found.items()}, bool(found)


def _gcs(connection: Connection, environment: Mapping[str, str]) -> Found:
    found = credentials.from_file(connection)
    options = {f"google_{key}": value for key, value in found.items()}
    if connection.endpoint:
        options["google_base_url"] = connection.endpoint
    return "gs", options, bool(found)


def _azure(connection: Connection, environment: Mapping[str, str]) -> Found:
    found = credentials.from_file(connection)
    options = {f"azure_storage_{key}": value for key, value in found.items()}
    if connection.endpoint:
        options["azure_storage_endpoint"] = connection.endpoint
    return "az", options, bool(found)


_FINDERS = {Provider.GCS: _gcs, Provider.AZURE: _azure}
