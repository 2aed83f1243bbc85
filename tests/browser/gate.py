"""A server in front of the bucket that lets the weights through when the test says so."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote

_HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


class Gate:
    """Passes requests on to 127.0.0.1:`port`; reads of an object wait while its name is held."""

    def __init__(self, port: int, *held: str) -> None:
        self._port = port
        self._opened = {name: threading.Event() for name in held}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Gate:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for name in self._opened:
            self.open(name)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self._server.server_port}"}

    def open(self, name: str) -> None:
        """From now on, reads of the object go through."""
        self._opened[name].set()

    def pass_on(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the bucket answers; the weights' headers, a few bytes long, are never held."""
        first_bytes = headers.get("range", headers.get("Range", "")).startswith("bytes=0-")
        for name, opened in self._opened.items():
            if name in unquote(path) and method == "GET" and not first_bytes:
                opened.wait()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request(method, path, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                status, headers, body = gate.pass_on(self.command, self.path, dict(self.headers))
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")

            do_GET = do_HEAD = _pass_on

            def log_message(self, format: str, *args: object) -> None:
                """A test's output is no place for an access log."""

        return Handler
