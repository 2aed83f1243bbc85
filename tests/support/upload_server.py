"""Resumable uploads as Cloud Storage documents them, strictly, and with what a network does to them.

https://cloud.google.com/storage/docs/performing-resumable-uploads
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from coldstream.weights.transfer.checksum import crc32c

_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
SECRET = "session-7f3a"
"""In an upload's URL, as Google's `upload_id`."""


class UploadServer:
    """One bucket. `trouble(n)` says of the n-th PUT: None, "cut" (bytes lost, no answer), "lost" (taken, no answer),
    "half" (half of it is taken) or "busy" (503)."""

    def __init__(self, trouble: Callable[[int], str | None] = lambda number: None) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.puts = 0
        self.trouble = trouble
        self.sessions: dict[str, tuple[str, bytearray]] = {}
        outer = self

        class Bound(_Handler):
            server_of_uploads = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_of_uploads: UploadServer

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self._body()
        name, wanted = query["name"][0], int(query["ifGenerationMatch"][0])
        assert query["uploadType"] == ["resumable"]
        if wanted != self.server_of_uploads.objects.get(name, (0, b""))[0]:
            self._answer(412)
            return
        key = f"{SECRET}-{len(self.server_of_uploads.sessions)}"
        self.server_of_uploads.sessions[key] = (name, bytearray())
        self._answer(200, {"Location": f"{self.server_of_uploads.url}/upload?upload_id={key}"})

    def do_PUT(self) -> None:
        server = self.server_of_uploads
        key = parse_qs(urlsplit(self.path).query)["upload_id"][0]
        name, held = server.sessions[key]
        body = self._body()
        found = _RANGE.fullmatch(self.headers["Content-Range"])
        assert found is not None
        size = int(found[3])
        if found[1] is None:
            assert not body
            self._state(name, held, size)
            return
        begin, last = int(found[1]), int(found[2])
        assert (begin, last - begin + 1) == (len(held), len(body))
        assert last + 1 == size or len(body) % (256 * 1024) == 0 or begin % (256 * 1024), "a chunk of an odd size"
        server.puts += 1
        trouble = server.trouble(server.puts)
        if trouble == "busy":
            self._answer(503)
            return
        if trouble != "cut":
            held += body[: len(body) // 2] if trouble == "half" else body
        if trouble in ("cut", "lost"):
            self.close_connection = True
            return
        self._state(name, held, size)

    def do_DELETE(self) -> None:
        self.server_of_uploads.sessions.pop(parse_qs(urlsplit(self.path).query)["upload_id"][0], None)
        self._answer(499)

    def _state(self, name: str, held: bytearray, size: int) -> None:
        if len(held) < size:
            self._answer(308, {"Range": f"bytes=0-{len(held) - 1}"} if held else {})
            return
        generation = self.server_of_uploads.objects.get(name, (0, b""))[0] + 1
        self.server_of_uploads.objects[name] = (generation, bytes(held))
        crc = base64.b64encode(crc32c(memoryview(held)).to_bytes(4, "big")).decode()
        resource = {"name": name, "size": str(size), "generation": str(generation), "crc32c": crc}
        self._answer(200, body=json.dumps(resource).encode())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: dict[str, str] | None = None, *, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
