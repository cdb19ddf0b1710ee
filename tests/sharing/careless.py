"""An object store on loopback that speaks just enough S3, and is not to be relied on.

It takes conditions and ignores them, as some servers do; and it can be told to keep half of what it is given, or to
show an old listing.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from fuse_ckpt.model import Connection, Provider
from fuse_ckpt.transfer import Remote
from tests.transfer.seaweed import ADMIN, BUCKET, NOWHERE, credentials

_DATE = "Wed, 25 Nov 2026 00:00:00 GMT"
_ISO = "2026-11-25T00:00:00.000Z"


class Careless:
    """`objects`: key → bytes. `truncates`: what ends so is kept by half. `hidden`: keys that listings lack."""

    def __init__(self, directory: Path) -> None:
        self.objects: dict[str, bytes] = {}
        self.truncates: str | None = None
        self.hidden: set[str] = set()
        self._credentials = credentials(directory / "careless", ADMIN)
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def remote(self) -> Remote:
        endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        connection = Connection(
            "careless", Provider.S3, 1, endpoint=endpoint, bucket=BUCKET, credentials_file=str(self._credentials)
        )
        return Remote(connection, BUCKET, NOWHERE, 3.0)

    def keep(self, key: str, data: bytes) -> None:
        cut = self.truncates is not None and key.endswith(self.truncates)
        self.objects[key] = data[: len(data) // 2] if cut else data

    def listing(self, query: dict[str, list[str]]) -> bytes:
        prefix = query.get("prefix", [""])[0]
        shown = sorted(key for key in self.objects if key.startswith(prefix) and key not in self.hidden)
        below = {key[len(prefix) :].partition("/") for key in shown} if "delimiter" in query else set()
        folders = "".join(
            f"<CommonPrefixes><Prefix>{escape(prefix + name)}/</Prefix></CommonPrefixes>"
            for name in sorted({name for name, slash, _ in below if slash})
        )
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            f"<LastModified>{_ISO}</LastModified><ETag>e</ETag></Contents>"
            for key in shown
            if "delimiter" not in query or "/" not in key[len(prefix) :]
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{folders}</ListBucketResult>"
        return body.encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, careless: Careless) -> None:
        self.careless = careless
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_PUT(self) -> None:
        self.server.careless.keep(_key(self.path), self._body())
        self._answer(200, b"")

    def do_POST(self) -> None:
        """Only to remove several objects."""
        keys = re.findall(r"<Key>(.*?)</Key>", self._body().decode())
        for key in keys:
            self.server.careless.objects.pop(unescape(key), None)
        gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{gone}</DeleteResult>".encode())

    def do_GET(self) -> None:
        key, careless = _key(self.path), self.server.careless
        bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if not key:
            self._answer(200, careless.listing(parse_qs(urlsplit(self.path).query)))
        elif key not in careless.objects:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif bounds:
            start, end, data = int(bounds[1]), int(bounds[2]), careless.objects[key]
            self._answer(206, data[start : end + 1], ("Content-Range", f"bytes {start}-{end}/{len(data)}"))
        else:
            self._answer(200, careless.objects[key])

    do_HEAD = do_GET

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, data: bytes, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), ("Last-Modified", _DATE), ("ETag", '"e"'), *more):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _key(path: str) -> str:
    return unquote(urlsplit(path).path).removeprefix(f"/{BUCKET}").strip("/")


@contextmanager
def careless_store(directory: Path) -> Iterator[Careless]:
    server = Careless(directory)
    try:
        yield server
    finally:
        server.close()
