"""`storage`, `export` and `push` as a person calls them: what they say, and that no secret is ever in it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fuse_ckpt.model import Shape
from tests.transfer import proxy
from tests.transfer.proxy import HANG_UP, Proxy
from tests.transfer.seaweed import ADMIN, BUCKET, READER, Seaweed, credentials
from tests.transfer.skewed import signed_at

WRONG = ("admin-key", "a-wrong-secret-0123456789abcdef")
UNKNOWN = ("nobody-s-key", "nobody-s-secret-0123456789")
SECRETS = [pair[1] for pair in (ADMIN, READER, WRONG, UNKNOWN)]


@pytest.fixture
def said(program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call the program; whatever it says, and whatever it leaves in the store, holds no secret."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1/")

    def call(*arguments: str, code: int = 0) -> Any:
        found = program(*arguments)
        assert found.code == code, (found.out, found.err)
        if code != 0:
            assert found.err.count("\n") == 1, found.err
        for secret in SECRETS:
            assert secret not in found.out + found.err
        for path in (tmp_path / "store").rglob("*"):
            if path.is_file():
                assert not any(secret.encode() in path.read_bytes() for secret in SECRETS), path
        return found

    return call


@pytest.fixture
def create(said: Any, seaweed: Seaweed) -> Any:
    def create(name: str = "lake", *options: str, file: Path | None = None, code: int = 0, **more: str) -> Any:
        chosen = {"--endpoint": seaweed.endpoint, "--bucket": BUCKET, "--credentials-file": str(file or seaweed.admin)}
        chosen |= {f"--{key.replace('_', '-')}": value for key, value in more.items()}
        given = [part for pair in chosen.items() for part in pair if pair[1]]
        return said("storage", "create", name, "--provider", "s3", *given, *options, code=code)

    return create


@pytest.fixture
def faulty(seaweed: Seaweed) -> Iterator[Proxy]:
    with proxy.before(seaweed.port) as found:
        yield found


def where(request: pytest.FixtureRequest) -> str:
    return f"{BUCKET}/cli/{request.node.name.replace('[', '-').rstrip(']')}"


def test_a_connection_is_tried_listed_probed_and_forgotten(create: Any, said: Any, seaweed: Seaweed) -> None:
    assert (
        create().out
        == f"Created storage connection lake (s3 at {seaweed.endpoint}): it answers; several machines can share it\n"
    )
    assert "lake already" in create(code=2).err
    (row,) = said("storage", "list").rows
    assert row == ["lake", "s3", seaweed.endpoint, BUCKET, "", str(seaweed.admin), "true", ""]
    (record,) = json.loads(said("storage", "list", "--json").out)
    assert (record["name"], record["createsOnce"], record["attached"]) == ("lake", True, None)
    probed = json.loads(said("storage", "probe", "lake", "--json").out)
    assert (probed["sharedUse"], probed["winnersOf16"], probed["secondCreateSucceeded"]) == (True, 1, False)
    assert said("storage", "list").rows[0][-2] == "true"
    assert said("storage", "delete", "lake").out == "Deleted storage connection lake\n"
    assert said("storage", "list").rows == []
    for command in (["delete", "lake"], ["probe", "lake"]):
        assert said("storage", *command, code=3).err.startswith("Unknown storage connection: lake")


def test_where_there_is_no_store_nothing_is_made(said: Any, tmp_path: Path) -> None:
    assert said("storage", "list", "--json").out == "[]\n"
    said("storage", "delete", "lake", code=3)
    said("storage", "create", "x", "--provider", "s3", "--endpoint", "nonsense", code=2)
    said("checkpoint", "push", "x", "--file", str(tmp_path / "nothing"), code=3)
    said("checkpoint", "push", "x", "--storage-provider", "lake", "--source-path", "a/b", code=3)
    assert not (tmp_path / "store").exists()


def test_credentials_come_from_the_environment_too(
    create: Any, said: Any, shelf: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    assert "AWS_ACCESS_KEY_ID" in create(credentials_file="", code=1).err
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMIN[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ADMIN[1])
    create(credentials_file="")
    found = shelf.put()
    done = said("checkpoint", "export", found.id, "--storage-provider", "lake", "--destination-path", where(request))
    assert done.out == f"Exported 1 file (7 bytes) to lake:{where(request)}, read back and compared\n"


def test_a_connection_without_a_bucket_is_tried_as_far_as_that_goes(create: Any, tmp_path: Path) -> None:
    assert "it answers; no --bucket" in create(bucket="").out
    wrong = credentials(tmp_path / "wrong", WRONG)
    assert "does not accept the credentials" in create("other", bucket="", file=wrong, code=1).err


@pytest.mark.parametrize(
    ("pair", "words"),
    [(WRONG, "does not accept the credentials (403 SignatureDoesNotMatch): check "), (UNKNOWN, "InvalidAccessKeyId")],
)
def test_wrong_credentials(create: Any, said: Any, tmp_path: Path, pair: tuple[str, str], words: str) -> None:
    file = credentials(tmp_path / "wrong", pair)
    error = create(file=file, code=1).err
    assert words in error
    assert str(file) in error
    assert said("storage", "list").rows == []
    create("lake", "--no-check", file=file)
    assert words in said("storage", "probe", "lake", code=1).err
    assert words in said("-v", "storage", "probe", "lake", code=1).err


def test_a_credentials_file_that_others_can_read(create: Any, seaweed: Seaweed, tmp_path: Path) -> None:
    file = credentials(tmp_path / "open", ADMIN)
    file.chmod(0o644)
    assert f"chmod 600 {file}" in create(file=file, code=2).err


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_an_hour_wrong(
    create: Any, said: Any, shelf: Any, faulty: Proxy, request: pytest.FixtureRequest, hours: int
) -> None:
    """The server's own answer to what such a machine would have signed."""
    faulty.rewrite = signed_at(timedelta(minutes=5))  # that much is let pass
    create(endpoint=faulty.endpoint)
    faulty.rewrite = signed_at(timedelta(hours=hours))
    wrong = "says that this machine's clock is wrong: set it, then try again"
    assert wrong in create("other", endpoint=faulty.endpoint, code=1).err
    found = shelf.put()
    to = ["--storage-provider", "lake", "--destination-path", where(request)]
    assert wrong in said("checkpoint", "export", found.id, *to, code=1).err
    assert wrong in said("storage", "attach", "lake", "--path", where(request), code=1).err
    faulty.rewrite = lambda method, path, headers: headers
    said("checkpoint", "export", found.id, *to)


def test_a_missing_bucket(create: Any, said: Any, shelf: Any) -> None:
    assert "no bucket for no-such-bucket (NoSuchBucket): make it there" in create(bucket="no-such-bucket", code=1).err
    create()
    found = shelf.put()
    for command in (
        ["export", found.id, "--storage-provider", "lake", "--destination-path", "no-such-bucket/x"],
        ["push", "name", "--storage-provider", "lake", "--source-path", "no-such-bucket/x"],
    ):
        assert "NoSuchBucket" in said("checkpoint", *command, code=1).err


def test_no_permission(create: Any, said: Any, shelf: Any, seaweed: Seaweed, request: pytest.FixtureRequest) -> None:
    create(file=seaweed.reader)
    found = shelf.put()
    to = ["--storage-provider", "lake", "--destination-path", where(request)]
    error = said("checkpoint", "export", found.id, *to, code=1).err
    assert f"does not permit this at {where(request)}/fuse-ckpt.partial.json (403 AccessDenied)" in error
    assert seaweed.remote().list(where(request).partition("/")[2]) == {}


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("http://no-such-host.invalid", "there is no host of that name: check its --endpoint"),
        ("http://127.0.0.1:9", "nobody answers there: check its --endpoint"),
    ],
)
def test_an_endpoint_that_leads_nowhere(create: Any, endpoint: str, words: str) -> None:
    assert words in create(endpoint=endpoint, code=1).err


@pytest.mark.parametrize("answer", [b"HTTP/1.1 404 Not Found", b"HTTP/1.1 200 OK", b"SSH-2.0-OpenSSH_9", b""])
def test_an_endpoint_that_is_no_object_store(create: Any, answer: bytes) -> None:
    import threading

    page = answer + b"\r\nContent-Length: 15\r\nContent-Type: text/html\r\n\r\n<html>hi</html>" if answer else b""

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connected, _ = listening.accept()
            except OSError:
                return
            with connected:
                connected.recv(65536)
                connected.sendall(page)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        error = create(endpoint=f"http://127.0.0.1:{listening.getsockname()[1]}", code=1).err
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert "object store" in error
    assert "--endpoint" in error


@pytest.mark.parametrize("fault", [500, 503, HANG_UP])
def test_a_server_that_fails_in_the_middle(
    create: Any, said: Any, shelf: Any, faulty: Proxy, request: pytest.FixtureRequest, fault: int
) -> None:
    create(endpoint=faulty.endpoint)
    files = {f"{n}.bin": bytes([n]) * 1000 for n in range(10)}
    found = shelf.put("checkpoint-5", files, shape=Shape.DIRECTORY)
    to = ["--storage-provider", "lake", "--destination-path", where(request)]
    faulty.decide = lambda method, path, count: fault if path.endswith("7.bin") and method == "PUT" else None
    error = said("checkpoint", "export", found.id, *to, "--patience", "0.5", code=1).err
    assert "run the same command again, it goes on from there" in error
    source = ["--storage-provider", "lake", "--source-path", where(request)]
    assert "was not finished" in said("checkpoint", "push", "back", *source, code=2).err
    faulty.decide = lambda method, path, count: None
    assert "of them were there" in said("checkpoint", "export", found.id, *to).out
    said("checkpoint", "push", "back", *source)


def test_a_server_that_dies_in_the_middle(
    create: Any, said: Any, shelf: Any, faulty: Proxy, request: pytest.FixtureRequest
) -> None:
    create(endpoint=faulty.endpoint)
    found = shelf.put("c-1", {f"{n}.bin": bytes([n]) * 1000 for n in range(10)}, shape=Shape.DIRECTORY)
    to = ["--storage-provider", "lake", "--destination-path", where(request)]
    died: list[int] = []

    def die(method: str, path: str, count: int) -> int | None:
        if died or path.endswith("3.bin"):
            died.append(count)
            return HANG_UP
        return None

    faulty.decide = die
    error = said("checkpoint", "export", found.id, *to, "--patience", "0.5", code=1).err
    assert "broke the connection off: run the same command again" in error


def test_a_destination_with_other_content(create: Any, said: Any, shelf: Any, request: pytest.FixtureRequest) -> None:
    create()
    first, second = shelf.put(), shelf.put("b.pt")
    to = ["--storage-provider", "lake", "--destination-path", where(request)]
    said("checkpoint", "export", first.id, *to)
    assert "--force" in said("checkpoint", "export", second.id, *to, code=2).err
    assert "4 files" not in said("checkpoint", "export", second.id, *to, "--force").out


def test_names_and_paths_that_are_none(create: Any, said: Any, shelf: Any) -> None:
    create()
    found = shelf.put()
    for path in ("", "a//b", "../x", "a\nb"):
        to = ["--storage-provider", "lake", "--destination-path", path]
        assert "--destination-path" in said("checkpoint", "export", found.id, *to, code=2).err
    to = ["--storage-provider", "lake", "--destination-path", f"{BUCKET}/x"]
    assert said("checkpoint", "export", "no-such", *to, code=3).err == "Unknown Checkpoint: no-such\n"
    assert (
        "Unknown storage connection: sea"
        in said("checkpoint", "export", found.id, *[*to[:1], "sea", *to[2:]], code=3).err
    )
    said("checkpoint", "push", "a/b", "--file", ".", code=2)
    for sources in ([], ["--file", ".", "--source-path", "x"], ["--storage-provider", "lake"]):
        assert "--file PATH" in said("checkpoint", "push", "ok", *sources, code=2).err


def test_a_pushed_checkpoint_is_inspected_with_where_it_came_from(
    create: Any, said: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/model.bin").write_bytes(b"weights")
    out = said("checkpoint", "push", "base", "--file", str(tmp_path / "files")).out
    assert out.startswith("Pushed base@1: ")
    assert out.endswith(", 1 file (7 bytes)\n")
    document = json.loads(said("checkpoint", "inspect", "base", "--json").out)
    assert document["spec"] == {
        "fromLocalFiles": [str(tmp_path / "files")],
        "storageProvider": None,
        "sourcePath": None,
    }
    assert (document["metadata"]["name"], document["status"]["status"]) == ("base", "available")
    create()
    said("checkpoint", "export", "base", "--storage-provider", "lake", "--destination-path", where(request))
    said("checkpoint", "push", "again", "--storage-provider", "lake", "--source-path", where(request))
    document = json.loads(said("checkpoint", "inspect", "again", "--json").out)
    assert document["spec"] == {"fromLocalFiles": [], "storageProvider": "lake", "sourcePath": where(request)}


def test_what_is_not_whole_is_pushed_by_force_alone(said: Any, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"\1")
    assert "--force" in said("checkpoint", "push", "torn", "--file", str(tmp_path / "m.safetensors"), code=1).err
    forced = said("checkpoint", "push", "torn", "--file", str(tmp_path / "m.safetensors"), "--force")
    assert "is a failed checkpoint" in forced.err


def test_a_directory_needs_no_credentials(said: Any, shelf: Any, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    said("storage", "create", "disk", "--provider", "file", "--root", str(tmp_path / "archive"))
    found = shelf.put("c-1", {"a.bin": b"1", "d/b.bin": b"22"}, shape=Shape.DIRECTORY, links={"l": "/etc"})
    done = said("checkpoint", "export", found.id, "--storage-provider", "disk", "--destination-path", "x/y")
    assert done.err == "Named in fuse-ckpt.json alone, for they lead to no file of it: l\n"
    assert (tmp_path / "archive/x/y/d/b.bin").read_bytes() == b"22"
    assert json.loads(said("storage", "probe", "disk", "--json").out)["sharedUse"] is True
    assert said("storage", "list").rows[0][:3] == ["disk", "file", str(tmp_path / "archive")]
    (tmp_path / "archive").rename(tmp_path / "elsewhere")
    gone = said("checkpoint", "export", found.id, "--storage-provider", "disk", "--destination-path", "z", code=1)
    assert "is its disk mounted?" in gone.err
