"""An HTTP proxy on loopback that stands before an object store and does it harm when it is told to."""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANG_UP = -1  # close the connection without an answer
CUT = -2  # close it in the middle of the answer
LOST = -3  # pass the request on, and close the connection without an answer

# Told the method, the path with its query, and how many requests came before; the status to answer with instead of
# passing the request on, HANG_UP, CUT, LOST, or None: pass it on.
Decide = Callable[[str, str, int], int | None]
# Told the method, the path with its query, and the headers of a request that is passed on; what to pass on as headers.
Rewrite = Callable[[str, str, dict[str, str]], dict[str, str]]


class Proxy:
    """`decide` and `rewrite` may be set at any time. `seen`: the requests that were passed on."""

    def __init__(self, port: int) -> None:
        self.decide: Decide = lambda method, path, count: None
        self.rewrite: Rewrite = lambda method, path, headers: headers
        self.seen: list[tuple[str, str]] = []
        self._count = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                verdict = proxy._decided(self.command, self.path)
                if verdict == HANG_UP:
                    self.close_connection = True
                elif verdict is not None and verdict > 0:
                    self.send_response(verdict)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self._pass_on(body, verdict)

            def _pass_on(self, body: bytes, verdict: int | None) -> None:
                behind = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                try:
                    headers = proxy.rewrite(self.command, self.path, dict(self.headers))
                    behind.request(self.command, self.path, body=body, headers=headers)
                    answer = behind.getresponse()
                    data = answer.read()
                except OSError:
                    self.close_connection = True
                    return
                finally:
                    behind.close()
                self.close_connection = verdict in (LOST, CUT)
                if verdict != LOST:
                    _answered(self, answer, data[: len(data) // 2] if verdict == CUT else data, len(data))

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def sent(self) -> list[str]:
        """The paths of the objects, or the parts of objects, that were passed on to be written."""
        return [path for method, path in self.seen if method == "PUT"]

    def restart(self) -> None:
        """Count from the beginning."""
        with self._lock:
            self._count = 0
            self.seen.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _decided(self, method: str, path: str) -> int | None:
        with self._lock:
            verdict = self.decide(method, path, self._count)
            self._count += 1
            if verdict is None:
                self.seen.append((method, path))
            return verdict


def _answered(handler: BaseHTTPRequestHandler, answer: http.client.HTTPResponse, data: bytes, size: int) -> None:
    """Give an answer on, with as much of its `size` bytes as there are."""
    handler.send_response(answer.status)
    for name, value in answer.getheaders():
        if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
            handler.send_header(name, value)
    length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(size)
    handler.send_header("Content-Length", length or "0")
    handler.end_headers()
    handler.wfile.write(data)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # connections; 16 at once are more than the default

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away, as killed ones do, is nobody's error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def before(port: int) -> Iterator[Proxy]:
    """A proxy before the server on that port of loopback."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
