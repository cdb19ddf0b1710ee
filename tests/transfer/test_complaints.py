"""What obstore says of an error, shortened from what it was seen to say, and what a person is told instead."""

from __future__ import annotations

import pytest

from fuse_ckpt.errors import (
    BucketMissing,
    CredentialsRefused,
    PermissionRefused,
    StorageFailed,
    Unreachable,
)
from fuse_ckpt.transfer.complaints import Where, complaint

WHERE = Where("lake", "https://s3.example.com", "check /home/me/keys")
SECRET = "AKIAsecretSECRET"


def answer(status: int, code: str = "", more: str = "") -> str:
    body = f"<Error><Code>{code}</Code><Message>{SECRET}</Message></Error>" if code else SECRET
    return (
        f"Generic S3 error: Error performing PUT https://s3.example.com/b/k?X-Amz-Signature={SECRET} in 1ms{more} - "
        f"Server returned non-2xx status code: {status} Some Reason: {body}\n\nDebug source: ..."
    )


def silence(kind: str, inner: str) -> str:
    return (
        f"Generic S3 error: Error performing GET https://s3.example.com/?sig={SECRET} in 1s, after 3 retries - HTTP "
        f"error: error sending request\n\nDebug source: HttpError {{ kind: {kind}, source: {inner} }}"
    )


ANSWERS = [
    (answer(403, "SignatureDoesNotMatch"), CredentialsRefused, "does not accept the credentials (403 Signature"),
    (answer(403, "InvalidAccessKeyId"), CredentialsRefused, "check /home/me/keys"),
    (answer(400, "ExpiredToken"), CredentialsRefused, "ExpiredToken"),
    (answer(401), CredentialsRefused, "401"),
    (answer(403, "AuthenticationFailed"), CredentialsRefused, "AuthenticationFailed"),
    (answer(403, "RequestTimeTooSkewed"), CredentialsRefused, "clock is wrong"),
    (answer(403, "AccessDenied"), PermissionRefused, "does not permit this at b/k (403 AccessDenied)"),
    (answer(403, "AuthorizationPermissionMismatch"), PermissionRefused, "AuthorizationPermissionMismatch"),
    (answer(404, "NoSuchBucket"), BucketMissing, "no bucket for b/k (NoSuchBucket): make it there"),
    (answer(404, "ContainerNotFound"), BucketMissing, "ContainerNotFound"),
    (answer(301, "PermanentRedirect"), StorageFailed, "another region"),
    (answer(400, "AuthorizationHeaderMalformed"), StorageFailed, "--region"),
    (answer(500, "InternalError", ", after 3 retries"), StorageFailed, "answered 500 InternalError, 4 times: run the"),
    (answer(503, "SlowDown"), StorageFailed, "answered 503 SlowDown: run the same command again"),
    (answer(429), StorageFailed, "answered 429"),
    (answer(404), StorageFailed, "does not answer as an object store (404)"),
    (answer(400, "EntityTooLarge"), StorageFailed, "answered 400 EntityTooLarge at b/k"),
    (f"DeleteObjects request failed for key k: {SECRET} (code: AccessDenied)", PermissionRefused, "at b/k"),
    (silence("Connect", '"dns error", "failed to lookup address information"'), Unreachable, "no host of that name"),
    (silence("Connect", '"tcp connect error", ConnectionRefused'), Unreachable, "nobody answers there"),
    (silence("Timeout", "TimedOut"), Unreachable, "in time"),
    (silence("Connect", "InvalidCertificate(UnknownIssuer)"), Unreachable, "TLS certificate"),
    (silence("Unknown", "hyper::Error(UnexpectedMessage)"), Unreachable, "broke the connection off"),
    (f"Error performing PUT http://169.254.169.254/latest/api/token {SECRET}", CredentialsRefused, "no credentials"),
    (f"error requesting http://metadata.google.internal/ {SECRET}", CredentialsRefused, "no credentials"),
    (f"Received redirect without LOCATION, this normally indicates an incorrectly configured region {SECRET}",
     StorageFailed, "another region"),
    (f"Generic LocalFileSystem error: Unable to copy {SECRET}: No space left on device (os error 28)",
     StorageFailed, "b/k: No space left on device."),
    (f"Got invalid list response: missing field `Contents` {SECRET}", StorageFailed, "as an object store would"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "kind", "words"), ANSWERS)
def test_an_error_is_one_line_with_the_way_out_and_nothing_of_what_was_said(
    said: str, kind: type[StorageFailed], words: str
) -> None:
    found = complaint(said, WHERE, "b/k")
    assert type(found) is kind
    assert words in str(found)
    assert str(found).startswith("Storage lake (https://s3.example.com)")
    assert SECRET not in str(found)
    assert str(found).isprintable()
