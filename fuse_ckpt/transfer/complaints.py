"""What an object store, or the way to it, did wrong, as one of our errors: one line, with the way out.

Nothing of what obstore says is passed on as it is: its messages hold URLs, answers and, in some, signatures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from msgspec import Struct
from obstore.exceptions import BaseError

from fuse_ckpt.errors import (
    BucketMissing,
    CredentialsRefused,
    FuseCkptError,
    PartsRefused,
    PermissionRefused,
    StorageFailed,
    Unreachable,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>|\(code: (\w{1,64})\)")
_TRIED = re.compile(r"after (\d+) retries")
_SYSTEM = re.compile(r"\(os error (\d+)\)")
_NO_CREDENTIALS = re.compile(
    r"/latest/api/token|security-credentials|metadata\.google\.internal|/identity/oauth2/token"
)
_NO_HOST = re.compile(r"dns error|failed to lookup address")
_NO_CONNECTION = re.compile(r"Connection refused|kind: Connect\b|HostUnreachable|NetworkUnreachable")
_NO_TIME = re.compile(r"kind: Timeout|TimedOut|operation timed out")
_NO_TRUST = re.compile(r"certificate|UnknownIssuer|BadSignature")
_NO_HTTP = re.compile(r"HTTP error|error sending request|error decoding response|IncompleteMessage|ConnectionReset")

_WRONG_CREDENTIALS = frozenset({
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired",
    "InvalidSecurity", "AuthenticationFailed", "NoAuthenticationInformation",
    "InvalidAuthenticationInfo", "AuthenticationRequired", "Unauthorized", "InvalidClientTokenId",
})  # fmt: skip
_WRONG_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "ContainerBeingDeleted"})


class Where(Struct, frozen=True):
    """Whom a complaint is about: the connection's name, what it leads to, and where its credentials come from."""

    connection: str
    endpoint: str
    credentials: str

    def __str__(self) -> str:
        return f"Storage {self.connection} ({self.endpoint})"


@contextmanager
def translated(where: Where, what: str) -> Iterator[None]:
    """Turn what obstore raises in the block into StorageFailed or a subclass. `what`: the bucket or path asked for."""
    try:
        yield
    except FuseCkptError:
        raise
    except (BaseError, FileNotFoundError) as error:
        raise complaint(str(error), where, what) from None
    except OSError as error:
        raise StorageFailed(f"{where}: {what}: {error.strerror or 'the disk refuses'}.") from None


def complaint(said: str, where: Where, what: str) -> StorageFailed:
    """The error that obstore's words stand for."""
    status, code = _STATUS.search(said), _CODE.search(said)
    if status is not None or code is not None:
        return _answer(int(status[1]) if status else 400, (code[1] or code[2]) if code else "", said, where, what)
    if "incorrectly configured region" in said:
        return StorageFailed(f"{where} has {what} in another region: name it with storage create --region.")
    if _NO_CREDENTIALS.search(said):
        return CredentialsRefused(f"{where}: there are no credentials for it: {where.credentials}.")
    if "non-partial response" in said:
        return PartsRefused(f"{where} sends whole objects where parts are asked for: no large one can be read from it.")
    return _silence(said, where) or _local(said, where, what)


def answer_in(said: str, where: Where, what: str) -> StorageFailed | None:
    """As `complaint`, of another client's words; None where they are not about the object store, or only of an object
    that is not there, or shorter than was thought."""
    status, code = _STATUS.search(said), _CODE.search(said)
    names_bucket = code is not None and (code[1] or code[2]) in _NO_BUCKET
    if status is not None and status[1] in ("404", "416") and not names_bucket:
        return None
    if status is not None or code is not None or _NO_CREDENTIALS.search(said):
        return complaint(said, where, what)
    return _silence(said, where)


def _answer(status: int, code: str, said: str, where: Where, what: str) -> StorageFailed:
    """What an answer with a status other than success means."""
    shown = f"{status} {code}".strip()
    if code == "RequestTimeTooSkewed":
        return CredentialsRefused(f"{where} says that this machine's clock is wrong: set it, then try again.")
    if code in _WRONG_REGION:
        return StorageFailed(f"{where} has {what} in another region ({shown}): name it with storage create --region.")
    if code in _WRONG_CREDENTIALS or status == 401:
        return CredentialsRefused(f"{where} does not accept the credentials ({shown}): {where.credentials}.")
    if code in _NO_BUCKET:
        return BucketMissing(f"{where} has no bucket for {what} ({code}): make it there, or name another.")
    if status == 403 or code == "AccessDenied":
        return PermissionRefused(
            f"{where} does not permit this at {what} ({shown}): its owner has to let these credentials do it."
        )
    if (status == 404 and not code) or status in (405, 501) or status < 400:
        return StorageFailed(f"{where} does not answer as an object store ({shown}): check its --endpoint.")
    if status >= 500 or status == 429:
        tries = _TRIED.search(said)
        often = f", {int(tries[1]) + 1} times" if tries else ""
        return StorageFailed(f"{where} answered {shown}{often}: run the same command again, it goes on from there.")
    return StorageFailed(f"{where} answered {shown} at {what}: check its --provider, --endpoint and --region.")


def _silence(said: str, where: Where) -> StorageFailed | None:
    """What it means that there was no answer, or none that could be read."""
    again = "run the same command again, it goes on from there"
    if _NO_HOST.search(said):
        return Unreachable(f"{where}: there is no host of that name: check its --endpoint.")
    if _NO_TRUST.search(said):
        return Unreachable(f"{where}: its TLS certificate is not to be trusted: check its --endpoint.")
    if _NO_TIME.search(said):
        return Unreachable(f"{where} does not answer in time: {again} (--patience waits longer).")
    if _NO_CONNECTION.search(said):
        return Unreachable(f"{where}: nobody answers there: check its --endpoint; if it was down, {again}.")
    if _NO_HTTP.search(said):
        return Unreachable(f"{where} broke the connection off: {again}; or it is no object store: check --endpoint.")
    return None


def _local(said: str, where: Where, what: str) -> StorageFailed:
    number = _SYSTEM.search(said)
    if number is not None:
        return StorageFailed(f"{where}: {what}: {os.strerror(int(number[1]))}.")
    return StorageFailed(f"{where} does not answer as an object store would: check its --provider and --endpoint.")
